"""What a program with OpenAI's Python package does, asserted. Run by openai_client_test.sh."""
import asyncio
import sys

import openai

url = f"http://{sys.argv[1]}/v1"
client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60)

assert [model.id for model in client.models.list()] == ["tiny"]
assert client.models.retrieve("tiny").object == "model"

arguments = dict(model="tiny", max_tokens=24, temperature=0, seed=3)
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]

whole = client.chat.completions.create(messages=messages, **arguments)
assert whole.choices[0].message.role == "assistant"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

stream = client.chat.completions.create(
    messages=messages, stream=True, stream_options={"include_usage": True}, **arguments)
chunks = list(stream)
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason

logprobs = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **arguments)
assert len(logprobs.choices[0].logprobs.content) == logprobs.usage.completion_tokens
assert len(logprobs.choices[0].logprobs.content[0].top_logprobs) == 2

completion = client.completions.create(prompt=["Once", "Twice"], n=2, extra_body={"top_k": 5}, **arguments)
assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
text = "".join(c.choices[0].text for c in client.completions.create(prompt="Once", stream=True, **arguments))
assert text == client.completions.create(prompt="Once", **arguments).choices[0].text


def fails(kind, **changes):
    try:
        client.chat.completions.create(**{"messages": messages, **arguments, **changes})
    except kind as error:
        return error
    raise AssertionError(f"{changes}: no {kind.__name__}")


assert fails(openai.NotFoundError, model="none").code == "model_not_found"
assert "temperature" in str(fails(openai.BadRequestError, temperature=200))
assert fails(openai.BadRequestError, tools=[{"type": "function", "function": {"name": "f"}}]).param == "tools"

# Leaving a stream early ends it on the server too: the next answer comes at once.
with client.completions.create(prompt="Once", stream=True, model="tiny", max_tokens=200) as early:
    next(iter(early))


async def many():
    asynchronous = openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60)
    answers = await asyncio.gather(
        *(asynchronous.completions.create(prompt="Once", **arguments) for _ in range(20)))
    assert {answer.choices[0].text for answer in answers} == {text}


asyncio.run(many())
print("ok")
