"""The name of an endpoint, ``API:MODEL[@URL]``, as the benchmark and the keep-warm calls take it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from outcrop.errors import BadSetting

APIS = ("bedrock", "sagemaker", "openai")
AWS = "aws"
_HOSTS = {"bedrock": "bedrock-runtime", "sagemaker": "runtime.sagemaker"}
_URL = re.compile(r"^https?://[^/\s?#]+")
_ARN_REGION = re.compile(r"^arn:aws[a-z-]*:(?:bedrock|sagemaker):([a-z0-9-]+):")


@dataclass(frozen=True, slots=True)
class Target:
    """*url*: empty for the server of OUTCROP_HOME, ``aws`` for Amazon's own endpoint, else where it is."""

    api: str
    model: str
    url: str = ""

    def __str__(self) -> str:
        return f"{self.api}:{self.model}" + (f"@{self.url}" if self.url else "")

    def region(self, default: str) -> str:
        """The region that an ARN names, else *default*."""
        found = _ARN_REGION.match(self.model)
        return found[1] if found else default

    def address(self, region: str) -> str:
        """Where requests go; Amazon's endpoint of *region* is written out."""
        return f"https://{_HOSTS[self.api]}.{region}.amazonaws.com" if self.url == AWS else self.url.rstrip("/")


def parse(text: str) -> Target:
    """The target that *text* names. Raises BadSetting with an example."""
    api, _, rest = text.partition(":")
    model, _, url = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if api not in APIS or not model:
        raise BadSetting(f"{text!r} is not API:MODEL[@URL] with {', '.join(APIS)}, e.g. bedrock:reviewer.")
    if url and url != AWS and not _URL.match(url):
        raise BadSetting(f"{text!r}: after @ comes aws or an http(s) URL, not {url!r}.")
    if url == AWS and api == "openai":
        raise BadSetting(f"{text!r}: @aws goes with bedrock and sagemaker; an OpenAI endpoint needs its URL.")
    return Target(api, model, url)
