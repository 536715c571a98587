"""A chat whose answer is a call of a tool, printed as JSON. The server: `make run-text`."""

import os

from openai import OpenAI

url = os.environ.get("ATELIER_URL", "http://localhost:8080")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("ATELIER_KEY", "none"))

DRAW = {
    "type": "function",
    "function": {
        "name": "draw",
        "description": "Draws a picture of shapes.",
        "parameters": {
            "type": "object",
            "properties": {"prompt": {"type": "string", "description": "What to draw"}},
            "required": ["prompt"],
        },
    },
}

answer = client.chat.completions.create(
    model="scenes",
    messages=[{"role": "user", "content": "Draw a small red circle above a large blue square."}],
    tools=[DRAW],
    temperature=0,
)
[call] = answer.choices[0].message.tool_calls
print(call.function.name, call.function.arguments)
