"""Fields of OpenAI's and vLLM's APIs that mean something this server does not do, and why.

They are refused with their reason; any other unknown field is refused as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

TOOLS = "this server does not call tools"
TEXT = "only text goes in and out"
_REFUSED_BY_BOTH: Mapping[str, str] = {
    "metadata": "nothing is stored",
    "prompt_cache_key": "prefixes are shared by themselves",
    "prompt_cache_options": "prefixes are shared by themselves",
    "prompt_cache_retention": "prefixes are kept while there is room",
    "guided_json": "output is not constrained",
    "guided_regex": "output is not constrained",
    "guided_choice": "output is not constrained",
    "guided_grammar": "output is not constrained",
    "structured_outputs": "output is not constrained",
    "min_tokens": "answers may end at any length",
    "stop_token_ids": "use 'stop' or 'logit_bias'",
    "bad_words": "use 'logit_bias'",
    "skip_special_tokens": "control tokens are never in the text",
    "spaces_between_special_tokens": "control tokens are never in the text",
    "include_stop_str_in_output": "stop strings are never in the text",
    "prompt_logprobs": "logprobs are of the answer",
    "use_beam_search": "tokens are drawn one after the other",
    "length_penalty": "tokens are drawn one after the other",
    "truncate_prompt_tokens": "a prompt that is too long is refused",
    "priority": "requests run in the order of their arrival",
}
REFUSED_CHAT: Mapping[str, str] = {
    **_REFUSED_BY_BOTH,
    "tools": TOOLS,
    "functions": TOOLS,
    "function_call": TOOLS,
    "parallel_tool_calls": TOOLS,
    "audio": TEXT,
    "prediction": "there is no speculative decoding",
    "reasoning_effort": "the model decides how long it thinks",
    "verbosity": "ask for it in the prompt",
    "web_search_options": "this server does not search",
    "moderation": "nothing is moderated",
    "chat_template": "the model's own template is used",
    "chat_template_kwargs": "the model's own template is used",
    "add_generation_prompt": "the answer is always a new message",
    "continue_final_message": "the answer is always a new message",
}
REFUSED_COMPLETIONS: Mapping[str, str] = {
    **_REFUSED_BY_BOTH,
    "suffix": "text is generated at the end only",
    "prompt_embeds": "prompts are text or token ids",
}
REFUSED_MESSAGE: Mapping[str, str] = {
    "name": "the chat template does not show names",
    "tool_calls": TOOLS,
    "tool_call_id": TOOLS,
    "function_call": TOOLS,
    "audio": TEXT,
    "refusal": "write it as 'content'",
}
REFUSED_PARTS = frozenset({"image_url", "input_audio", "file", "refusal", "video_url"})
