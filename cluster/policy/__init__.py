"""Stage 4 on a cluster: imagination workers in any number, one learner that comes back, and who watches over them."""
