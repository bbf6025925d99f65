"""A harness that searches once for what the question says and asks the model once."""

from __future__ import annotations

from typing import Any

import httpx
import verifiers.v1 as vf
from mcp import Client

__all__ = ["ScriptedHarness"]


class ScriptedConfig(vf.HarnessConfig):
    """Nothing to set."""


class ScriptedHarness(vf.Harness[ScriptedConfig]):
    """Runs in the process of the environment."""

    SUPPORTS_MCP = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
        tool_interception_url: str | None = None,
    ) -> vf.ProgramResult:
        """See ``vf.Harness.launch``."""
        question = data.prompt_text.rpartition("Question: ")[2]
        [url] = mcp_urls.values()
        async with Client(url) as client:
            found = await client.call_tool("search", {"query": question})
        passages = "".join(getattr(part, "text", "") for part in found.content)
        body: dict[str, Any] = {
            "model": ctx.model,
            "messages": [{"role": "user", "content": f"{data.prompt_text}\n\n{passages}"}],
        }
        headers = {"Authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(timeout=60) as http:
            answer = await http.post(f"{endpoint}/chat/completions", json=body, headers=headers)
        return vf.ProgramResult(0 if answer.status_code == 200 else 1, "", answer.text)
