"""`sandhold tools`: the tools as an agent runtime wants them declared."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandhold.cli.output import JsonFlag, output

if TYPE_CHECKING:
    from sandhold.contracts.names import ToolName


class ToolFormat(StrEnum):
    """Who reads the declarations."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    MCP = "mcp"


def tools(
    format_: Annotated[
        ToolFormat, typer.Option("--format", help="Chat completions, Messages API, or Model Context Protocol.")
    ] = ToolFormat.MCP,
    as_json: JsonFlag = False,
) -> None:
    """Print the tools as a JSON array of declarations."""
    from sandhold.contracts.names import MODEL_TOOLS

    output.document([declaration(tool, format_) for tool in MODEL_TOOLS])


def declaration(tool: ToolName, format_: ToolFormat) -> dict[str, Any]:
    """One tool: its name, what it does, and the JSON Schema of its arguments."""
    from sandhold.contracts.tools import description, input_schema

    name, told, schema = tool.value, description(tool), input_schema(tool)
    if format_ is ToolFormat.OPENAI:
        return {"type": "function", "function": {"name": name, "description": told, "parameters": schema}}
    if format_ is ToolFormat.ANTHROPIC:
        return {"name": name, "description": told, "input_schema": schema}
    return {"name": name, "description": told, "inputSchema": schema}
