//! Any chat template on a small conversation: it renders, twice the same, or fails with one line,
//! soon and in little memory (libFuzzer's own limits watch both).
//!
//! The first byte chooses the conversation and how the others are read: as the template's text, or
//! each as one of `WORDS`, which makes templates that get past the parser more often.
#![no_main]

mod common;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use realm_tokenizer::TokenizerError;
use realm_tokenizer::chat::{Chat, ChatTemplate, Now, message};
use serde_json::{Map, Value, json};

#[rustfmt::skip]
const WORDS: &[&str] = &[
    "{{ ", " }}", "{%- ", " -%}", "{% ", " %}", "{% endif %}", "{% endfor %}", "{% endset %}",
    "{% endmacro %}", "{% else %}", "{% if ", "{% elif ", "{% for x in ", "{% for k, v in ",
    "{% set x = ", "{% set y = ", "{% set ns.x = ", "{% set ns.y = ", "{% set x %}",
    "{% set ns = namespace(x=1, y=[]) %}", "{% macro m(a, b=2) %}", "{% call m(1) %}",
    "{% endcall %}", "{% filter ", "{% endfilter %}", "{% with x = ", "{% endwith %}",
    "{% generation %}", "{% endgeneration %}", "{% raw %}", "{% endraw %}", "{% break %}",
    "{% continue %}", "{# ", " #}", "x", "y", "k", "v", "ns", "ns.x", "ns.y", "m(x)", "m(", "loop",
    "loop.index", "loop(x)", " recursive %}", "caller()", "messages", "tools", "message.content",
    "messages[0]", "bos_token", "add_generation_prompt", "(", ")", "[", "]", "{", "}", ", ", ": ",
    " = ", " + ", " - ", " ~ ", " * ", " / ", " // ", " % ", " ** ", " == ", " != ", " < ", " >= ",
    " and ", " or ", " not ", " in ", " not in ", " is ", " is not ", " if ", " else ", "|", ".",
    "-", "'a'", "\"b\\n\"", "''", "0", "1", "7", "99999", "1.5", "10**9", "true", "none", "[x, x]",
    "[1, 2]", "{'a': x}", "(x, y)", "x[1:]", "[::-1]", ".items()", ".keys()", ".get('a')",
    ".split(", ".strip()", ".join(", ".replace(", ".format(", ".upper()", ".startswith(",
    ".splitlines()", ".partition(", ".center(", ".count(", ".index(", "|join", "|join(", "|tojson",
    "|tojson(indent=2)", "|length", "|trim", "|string", "|list", "|items", "|sort", "|unique",
    "|map('string')", "|map(attribute='role')", "|selectattr('role', 'equalto', 'user')", "|batch(",
    "|slice(", "|groupby(", "|dictsort", "|first", "|last", "|min", "|sum", "|reverse", "|default(",
    "|replace(", "|indent(", "|format(", "|int", "|float", "|round(", "|e", "|upper", "|title",
    "|attr(", "|zip(", "|chain(", "range(", "range(9)", "dict(", "namespace(", "joiner(", "debug()",
    "raise_exception(", "strftime_now('%d %b')", "defined", "string", "mapping", "iterable", "none",
    "\n", "  ", "text",
];

static CONVERSATIONS: LazyLock<[Vec<Value>; 4]> = LazyLock::new(|| {
    let call =
        json!({ "id": "a1", "function": { "name": "f", "arguments": { "x": [1, 2.5, null] } } });
    [
        vec![],
        vec![message("user", "Hi")],
        vec![
            message("system", "Be\nkind."),
            message("user", "<é> 'x' \"y\""),
            message("assistant", ""),
        ],
        vec![
            message("user", "x"),
            json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
            json!({ "role": "tool", "name": "f", "content": "{\"y\": true}" }),
        ],
    ]
});

static TOOLS: LazyLock<Vec<Value>> =
    LazyLock::new(|| vec![json!({ "type": "function", "function": { "name": "f" } })]);

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let source = if choice & 0x80 == 0 {
        String::from_utf8_lossy(rest).into_owned()
    } else {
        rest.iter().map(|&byte| WORDS[usize::from(byte) % WORDS.len()]).collect()
    };
    let template = match ChatTemplate::new(&source, "<s>", "</s>") {
        Ok(template) => template,
        Err(error) => return one_line(&error),
    };
    assert_eq!(template.source(), source);
    let mut extra = Map::new();
    if choice & 8 != 0 {
        extra.insert("enable_thinking".to_owned(), json!(false));
    }
    let chat = Chat {
        messages: &CONVERSATIONS[usize::from(choice & 3)],
        tools: (choice & 4 != 0).then_some(TOOLS.as_slice()),
        add_generation_prompt: choice & 16 != 0,
        extra: &extra,
        now: Now::new(2024, 2, 29, 1, 2, 3),
    };
    let text = template.render(&chat);
    match &text {
        Ok(text) => assert!(text.len() < 80 << 20, "{} bytes", text.len()),
        Err(error) => one_line(error),
    }
    // A second time only where the first was short, so that the fuzzer stays fast.
    if text.as_ref().is_ok_and(|text| text.len() < 10_000) {
        assert_eq!(template.render(&chat), text);
    }
});

fn one_line(error: &TokenizerError) {
    common::one_line(error, 2000);
}
