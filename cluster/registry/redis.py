"""The registry in a Redis: one truth for several machines and several clusters, readable while none of them is up.

Every operation is one script, which Redis runs whole. A run has four keys and stands in one set of all runs:

```
dreamer4:{PATH}:token    the fence, a counter               dreamer4:{PATH}:facts     what the writer tells, as JSON
dreamer4:{PATH}:lease    holder, since when; it vanishes    dreamer4:{PATH}:versions  newest weights version by stage
                         when the lease has run out
```
The fence stands in the run directory too. So tokens grow even if Redis has lost its memory, and so that a process that
was started without DREAMER4_REGISTRY finds out instead of taking the run for free.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from cluster.registry.lease_files import LeaseFiles
from cluster.registry.rules import Lease, check_claim, encode, lost, refused, run_key
from dreamer4.errors import RunError

Result = TypeVar("Result")
PREFIX = "dreamer4:"
RUNS = f"{PREFIX}runs"
TIMEOUT = 2.0  # seconds, to connect and to answer: short, so that whoever can't renew knows it in time
NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "  # milliseconds since 1970

# KEYS: token, lease, runs. ARGV: holder, milliseconds, the fence on the disk, run.
# Gives 1 and the token, or 0, who writes the run, and for how many milliseconds.
ACQUIRE = f"""{NOW}
local holder = redis.call('HGET', KEYS[2], 'holder')
if holder and holder ~= ARGV[1] then
  return {{0, holder, now - tonumber(redis.call('HGET', KEYS[2], 'since'))}}
end
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[3]) then redis.call('SET', KEYS[1], ARGV[3]) end
local token = redis.call('INCR', KEYS[1])
redis.call('HSET', KEYS[2], 'holder', ARGV[1], 'since', now)
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[4])
return {{1, token}}
"""

# Leases that were superseded are told the newest token and its holder. It counts whether a token is the newest, not
# whether its time has passed: nobody wrote in between, or there would be a newer one.
FENCE = """
local newest = redis.call('GET', KEYS[1]) or '0'
if newest ~= ARGV[1] then return {0, newest, redis.call('HGET', KEYS[2], 'holder') or ''} end
"""

# KEYS: token, lease. ARGV: token, holder, milliseconds.
RENEW = f"""{NOW}{FENCE}
redis.call('HSET', KEYS[2], 'holder', ARGV[2])
redis.call('HSETNX', KEYS[2], 'since', now)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {{1}}
"""

# KEYS: token, lease. ARGV: token. The fence goes up, so that a copy of the lease is worth nothing from now on.
RELEASE = f"""{FENCE}
redis.call('INCR', KEYS[1])
redis.call('DEL', KEYS[2])
return {{1}}
"""

# KEYS: token, lease. ARGV: token.
CHECK = f"{FENCE} return {{1}}"

# KEYS: token, lease, facts, versions, runs. ARGV: token, run, weights version or '', then names and values in turn.
PUBLISH = f"""{NOW}{FENCE}
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[3], 'updated', now)
if ARGV[3] ~= '' then
  local stage = redis.call('HGET', KEYS[3], 'stage') or '""'
  local before = redis.call('HGET', KEYS[4], stage)
  if not before or tonumber(before) < tonumber(ARGV[3]) then redis.call('HSET', KEYS[4], stage, ARGV[3]) end
end
redis.call('SADD', KEYS[5], ARGV[2])
return {{1}}
"""

# KEYS: token, lease, facts, versions. One moment of everything; the version is that of the present stage.
READ = f"""{NOW}
local stage = redis.call('HGET', KEYS[3], 'stage') or '""'
return {{
  redis.call('GET', KEYS[1]) or '0', redis.call('HGET', KEYS[2], 'holder') or '',
  redis.call('HGET', KEYS[2], 'since') or '0', redis.call('HGET', KEYS[4], stage) or '',
  tostring(now), redis.call('HGETALL', KEYS[3])
}}
"""


class RedisService:
    """A connection that never tells its password: not in errors, not in its repr."""

    def __init__(self, url: str):
        """`url` is `redis://[user]:[password]@host:port/db`, `rediss://` for TLS.

        Raises:
            RunError: it isn't.
        """
        self.name, self.secret = _address(url)
        self.client = Redis.from_url(
            url,
            decode_responses=True,
            protocol=2,  # the same in all versions of Redis and of its client
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # who calls decides whether to try again, and until when
        )

    def __repr__(self) -> str:
        return f"RedisService({self.name})"

    def run(self, script: str, keys: list[str], *arguments: str | int) -> list[Any]:
        """Raises `RunError` if Redis doesn't answer, or refuses."""
        return self.call(lambda client: cast("list[Any]", client.register_script(script)(keys, arguments)))

    def call(self, act: Callable[[Any], Result]) -> Result:
        """Raises `RunError` if Redis doesn't answer, or refuses."""
        try:
            return act(self.client)
        except (RedisError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if self.secret:
                reason = reason.replace(self.secret, "***")
        # Outside of the handler: a server without AUTH repeats the password, and a chained error would be printed.
        raise RunError(
            f"{self.name} doesn't serve as the registry of runs ({reason}): start it, or correct DREAMER4_REGISTRY"
        )


class RedisRegistry:
    """See `cluster.registry.registry.Registry`."""

    def __init__(self, path: str | Path, service: RedisService):
        self.run, self.service = run_key(path), service
        self.files = LeaseFiles(self.run)
        self.keys = [f"{PREFIX}{{{self.run}}}:{name}" for name in ("token", "lease", "facts", "versions")]

    def acquire(self, holder: str, ttl: float) -> Lease:
        check_claim(holder, ttl)
        with self.files.locked():
            entry = self.files.entry()  # of a process that doesn't know of this Redis
            if entry is not None and entry.holder not in (None, holder) and entry.alive():
                raise RunError(
                    f"run '{self.run}' is written by '{entry.holder}', which was started without DREAMER4_REGISTRY: "
                    "wait until it ends, or stop it first"
                )
            arguments = (holder, round(ttl * 1000), self.files.newest(), self.run)
            taken, *answer = self.service.run(ACQUIRE, [*self.keys[:2], RUNS], *arguments)
            if not taken:
                raise refused(self.run, answer[0], answer[1] / 1000)
            # Before anybody may use the token.
            self.files.raise_fence(answer[0])
            self.files.write(None, answer[0], 0)
            self.files.set_elsewhere(self.service.name)
        return Lease(self.run, holder, answer[0])

    def renew(self, lease: Lease, ttl: float) -> None:
        check_claim(lease.holder, ttl)
        self._fenced(lease, RENEW, self.keys[:2], lease.holder, round(ttl * 1000))

    def release(self, lease: Lease) -> None:
        with self.files.locked():
            released, *_ = self.service.run(RELEASE, self.keys[:2], lease.token)
            if released:
                self.files.set_elsewhere(None)

    def check(self, lease: Lease) -> None:
        self._fenced(lease, CHECK, self.keys[:2])

    def publish(self, lease: Lease, **fields: Any) -> None:
        texts = encode(fields)
        version = texts.pop("weights_version", "")
        flat = [text for pair in texts.items() for text in pair]
        self._fenced(lease, PUBLISH, [*self.keys, RUNS], self.run, version, *flat)

    def _fenced(self, lease: Lease, script: str, keys: list[str], *arguments: str | int) -> None:
        done, *answer = self.service.run(script, keys, lease.token, *arguments)
        if not done:
            raise lost(lease, int(answer[0]), answer[1] or None)

    def read(self) -> dict[str, Any]:
        token, holder, since, version, now, flat = self.service.run(READ, self.keys)
        facts = {name: json.loads(text) for name, text in zip(flat[::2], flat[1::2], strict=True)}
        updated = facts.pop("updated", None)
        return {
            "run": self.run,
            "registry": self.service.name,
            "holder": holder or None,
            "token": int(token),
            "held_s": (int(now) - int(since)) / 1000 if holder else None,
            "updated": None if updated is None else updated / 1000,
            "age_s": None if updated is None else (int(now) - updated) / 1000,
            **facts,
            **({"weights_version": int(version)} if version else {}),
        }


def known_runs(service: RedisService) -> list[str]:
    """The paths of all runs that were ever written under this Redis."""
    return sorted(service.call(lambda client: client.smembers(RUNS)))


def _address(url: str) -> tuple[str, str]:
    """What errors may say of a URL, and the password they may not. Never says the URL itself.

    Raises:
        RunError: it can't be read without doubt. A password with `/`, `#`, `?` or `@` would be taken for other parts.
    """
    try:
        parts = urlsplit(url)
        host, port, secret = parts.hostname, parts.port or 6379, unquote(parts.password or "")
    except ValueError:
        host, port, parts, secret = None, 0, urlsplit(""), ""
    rest = parts.path + parts.query + parts.fragment
    plain = re.fullmatch(r"/?\d*", parts.path) and not parts.fragment and "@" not in rest
    if parts.scheme not in ("redis", "rediss") or not host or not plain:
        raise RunError(
            "DREAMER4_REGISTRY must be redis://:PASSWORD@HOST:PORT/DB, with / # ? @ in the password written as "
            "%2F %23 %3F %40"
        )
    return f"redis at {host}:{port}{parts.path if parts.path not in ('', '/', '/0') else ''}", secret
