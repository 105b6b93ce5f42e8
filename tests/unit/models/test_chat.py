"""Chat templates: what they can do, what stops them, and that the next render works again."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from servewright_runtime.errors import RequestError
from servewright_runtime.models.chat import MAX_SOURCE_CHARS, JinjaChatTemplate
from support.waiting import eventually

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "Hello"}]

Make = Callable[[str], JinjaChatTemplate]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[JinjaChatTemplate] = []

    def make_template(source: str) -> JinjaChatTemplate:
        made.append(JinjaChatTemplate(source, **TOKENS))
        return made[-1]

    yield make_template
    for template in made:
        template.close()


def rendered(template: JinjaChatTemplate, messages: Any = HELLO) -> str:
    return template.render(messages, add_generation_prompt=True)


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

WORKS = {
    "a conversation": (CHATML, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
    "bos and eos": ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>Hello</s>"),
    "blocks are trimmed": ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
    "tojson leaves text as it is": ("{{ {'a': '<é&\\'>'} | tojson }}", '{"a": "<é&\'>"}'),
    "tojson indents": ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
    "loop controls": ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}"
                      "{% endfor %}", "01"),
    "generation is its body": ("{% generation %}x{% endgeneration %}", "x"),
    "a namespace": ("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}", "2"),
    "a macro": ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') }}", "[a]"),
    "text methods": ("{{ ' a,b '.strip().split(',') | join('+') }}", "a+b"),
    "no tools": ("{% if tools %}x{% endif %}{{ tools is none }}", "True"),
    "text beyond ASCII": ("{{ messages[0]['content'] }}🙂漢", "Hello🙂漢"),
}  # fmt: skip


@pytest.mark.parametrize("case", WORKS)
def test_what_chat_templates_use_works(make: Make, case: str) -> None:
    source, wanted = WORKS[case]
    assert rendered(make(source)) == wanted


def test_the_date_is_todays(make: Make) -> None:
    before = time.strftime("%Y-%m-%d")
    text = rendered(make("{{ strftime_now('%Y-%m-%d') }}"))
    assert before <= text <= time.strftime("%Y-%m-%d")


BOMBS = {
    "an endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
                       "{% endfor %}",
    "a loop over more than memory": "{% for i in range(10**9) %}x{% endfor %}",
    "a text of a gigabyte": "{{ 'a' * 10**9 }}",
    "a text that doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
                           "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a deep power": "{{ 9**(9**9) }}",
    "a list of a billion": "{{ ([0] * 10**9) | length }}",
    "a wide column": "{{ 'a' | center(10**9) }}",
    "a wide format": "{{ '%01000000000d' | format(1) }}",
    "a wide method": "{{ '{:1000000000}'.format(1) }}",
    "an endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "filters upon filters": "{{ range(99999) | map('string') | join('x' * 99999) | length }}",
    "a deep list": "{{ " + "[" * 500 + "]" * 500 + " }}",
    "too much text": "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_stopped_and_told_in_one_sentence(make: Make, bomb: str) -> None:
    template = make(BOMBS[bomb])
    with pytest.raises(RequestError) as caught:
        rendered(template)
    assert caught.value.status == 400
    assert str(caught.value).startswith("the model's chat template ")
    assert "\n" not in str(caught.value)


ESCAPES = {
    "by class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "by attr": "{{ '' | attr('__class__') | attr('mro') }}",
    "by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "by globals": "{{ raise_exception.__globals__ }}",
    "by code": "{{ strftime_now.__code__ }}",
    "by self": "{{ self.__init__.__globals__['__builtins__'] }}",
    "by cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "by lipsum": "{{ lipsum.__globals__['os'].system('id') }}",
    "by import": "{% import 'os' as os %}{{ os }}",
    "by include": "{% include '/etc/passwd' %}",
    "by changing a list": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_template_reaches_beyond_its_values(make: Make, escape: str) -> None:
    try:
        text = rendered(make(ESCAPES[escape]))
    except RequestError:
        return
    assert text == ""  # an attribute that is not safe is undefined, and prints nothing


def test_a_template_after_a_stopped_one_renders(make: Make) -> None:
    template = make("{% set n = messages | length - 1 %}{{ (9**(9**n)) | string | length }}")
    with pytest.raises(RequestError, match="was stopped"):
        rendered(template, HELLO * 9)
    assert rendered(template) == "1"


def test_what_the_template_refuses_is_passed_on(make: Make) -> None:
    template = make("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="refuses the messages: roles must alternate") as caught:
        rendered(template)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | no_such_filter }}", "{% for %}"])
def test_a_template_that_does_not_compile_says_so_each_time(make: Make, source: str) -> None:
    template = make(source)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"does not compile.*/v1/completions\.$"):
            rendered(template)


def test_a_template_that_fails_says_how(make: Make) -> None:
    with pytest.raises(RequestError, match="failed with UndefinedError"):
        rendered(make("{{ messages[0].name.first }}"))


def test_a_source_of_a_megabyte_is_not_compiled(make: Make) -> None:
    with pytest.raises(RequestError, match="characters; at most"):
        rendered(make("x" * (MAX_SOURCE_CHARS + 1)))


def test_a_long_conversation_renders(make: Make) -> None:
    messages = [{"role": "user", "content": "é🙂" * 100_000}] * 10
    assert len(rendered(make(CHATML), messages)) > 2_000_000


def test_a_lone_surrogate_goes_through_and_is_left_to_the_tokenizer(make: Make) -> None:
    assert rendered(make(CHATML), [{"role": "user", "content": "\ud800"}]).count("\ud800") == 1


def test_threads_share_a_template(make: Make) -> None:
    template = make(CHATML)
    wrong: list[str] = []

    def render_some(name: str) -> None:
        for i in range(20):
            content = f"{name} {i}"
            if content not in rendered(template, [{"role": "user", "content": content}]):
                wrong.append(content)

    threads = [threading.Thread(target=render_some, args=(f"thread {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def workers() -> set[int]:
    found = set()
    for process in psutil.Process().children():
        try:
            if any("chat_worker" in word for word in process.cmdline()):
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def test_the_worker_ends_with_its_template() -> None:
    before = workers()
    template = JinjaChatTemplate(CHATML, **TOKENS)
    rendered(template)
    assert len(workers() - before) == 1
    del template
    gc.collect()
    eventually(lambda: workers() <= before)


def test_a_closed_template_renders_no_more(make: Make) -> None:
    template = make(CHATML)
    template.close()
    with pytest.raises(RequestError, match="is closed"):
        rendered(template)


def test_a_worker_that_was_killed_is_replaced(make: Make) -> None:
    before = workers()
    template = make(CHATML)
    rendered(template)
    [worker] = map(psutil.Process, workers() - before)
    worker.kill()
    eventually(lambda: worker.status() == psutil.STATUS_ZOMBIE)
    assert "Hello" in rendered(template)
