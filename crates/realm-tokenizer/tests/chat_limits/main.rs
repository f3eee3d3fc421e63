//! Templates that mean harm: each must end with a one-line error, soon, in little memory, and on a
//! small stack.

mod depth;
mod growth;
mod numbers;

use std::time::{Duration, Instant};

use realm_tokenizer::TokenizerError;
use realm_tokenizer::chat::{Chat, ChatTemplate, message};
use serde_json::{Map, Value, json};

/// What the documentation promises to be enough.
const STACK: usize = 1 << 20;
/// Unoptimized, on a machine that does other work too.
const TIME: Duration = Duration::from_secs(10);

fn run(source: &str, messages: &[Value]) -> Result<String, TokenizerError> {
    let extra = Map::new();
    let chat =
        Chat { messages, tools: None, add_generation_prompt: true, extra: &extra, now: None };
    ChatTemplate::new(source, "<s>", "</s>")?.render(&chat)
}

/// Runs a template on a small stack, against the clock.
fn on_small_stack(source: &str) -> Result<String, TokenizerError> {
    let shown: String = source.chars().take(100).collect();
    let (source, start) = (source.to_owned(), Instant::now());
    let thread = std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || run(&source, &[message("user", "Hi"), message("assistant", "Ho")]));
    let result = thread.expect("a thread").join().expect("no panic");
    let took = start.elapsed();
    assert!(took < TIME, "took {took:?}: {shown}");
    if let Err(error) = &result {
        let line = error.to_string();
        assert!(!line.contains('\n') && line.len() < 600, "not one short line: {line:?}");
    }
    result
}

/// Every template ends with an error that `expected` accepts.
fn all_fail(sources: &[String], expected: impl Fn(&TokenizerError) -> bool) {
    for source in sources {
        let shown: String = source.chars().take(300).collect();
        match on_small_stack(source) {
            Err(error) if expected(&error) => {}
            Err(error) => panic!("{shown}\n another error: {error:?}"),
            Ok(text) => panic!("{shown}\n no error but {} bytes", text.len()),
        }
    }
    peak_is_small();
}

/// The most memory that this process ever had, where the system says so.
fn peak_is_small() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    assert!(peak.is_none_or(|kib| kib < 600 << 10), "peak memory {peak:?} KiB");
}

fn is_limit(error: &TokenizerError) -> bool {
    matches!(error, TokenizerError::TemplateLimit { .. })
}

fn is_syntax(error: &TokenizerError) -> bool {
    matches!(error, TokenizerError::TemplateSyntax { line, .. } if *line > 0)
}

fn is_refusal(error: &TokenizerError) -> bool {
    matches!(error, TokenizerError::TemplateFailed { .. } | TokenizerError::TemplateLimit { .. })
}

fn strings<const N: usize>(sources: [&str; N]) -> Vec<String> {
    sources.map(str::to_owned).to_vec()
}

#[test]
fn broken_sources_name_their_line() {
    let cases = [
        ("a\n{{ 'b }}", 2),
        ("{{ 1 + }}", 1),
        ("\n\n{{ (1 }}\n", 3),
        ("{{ ] }}", 1),
        ("x\n{% if true %}", 2),
        ("{% endif %}", 1),
        ("{% nonsense %}", 1),
        ("{# never", 1),
        ("a\n{% raw %}{{", 2),
        ("{{ '\\x4' }}", 1),
        ("{{ a $ b }}", 1),
        ("{% for x in %}{% endfor %}", 1),
        ("{% for %}{% endfor %}", 1),
        ("{% macro %}{% endmacro %}", 1),
        ("{% set %}", 1),
        ("{% %}", 1),
        ("{{", 1),
        ("{%", 1),
        ("{{ }}", 1),
        ("{{ ) }}{{ ( }}", 1),
        ("{{ x is }}", 1),
        ("{{ x| }}", 1),
        ("{{ x. }}", 1),
        ("{{ x.'a\\n' }}", 1),
    ];
    for (source, expected) in cases {
        match on_small_stack(source) {
            Err(TokenizerError::TemplateSyntax { line, .. }) => {
                assert_eq!(line, expected, "{source}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
    let long = "x".repeat((1 << 20) + 1);
    assert!(matches!(on_small_stack(&long), Err(TokenizerError::TemplateTooLarge { .. })));
}

#[test]
fn refusals_carry_the_message() {
    let source = "{% if messages|length != 1 %}{{ raise_exception('one\nmessage, not ' ~ messages|length) }}{% endif %}";
    let error = on_small_stack(source).unwrap_err();
    assert_eq!(error, TokenizerError::TemplateRaised { message: "one message, not 2".to_owned() });
    let inside = format!("{{% macro m() %}}{source}{{% endmacro %}}{{{{ m() }}}}");
    assert_eq!(on_small_stack(&inside).unwrap_err(), error);
}

#[test]
fn a_long_conversation_fits_and_a_deep_one_does_not() {
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
                  {{ '<|' ~ m.role ~ '|>' ~ m.content|trim ~ eos_token }}{% endfor %}{{ ns.n }}";
    let many: Vec<Value> = (0..5000).map(|_| message("user", "a few words here")).collect();
    assert!(run(source, &many).unwrap().ends_with("</s>5000"));
    let long = [message("user", &"0123456789".repeat(1_000_000))];
    assert_eq!(run(source, &long).unwrap().len(), 10_000_000 + "<|user|></s>1".len());
    let mut deep = json!("x");
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let error = run(source, &[json!({ "role": "user", "content": deep })]).unwrap_err();
    assert!(matches!(error, TokenizerError::ChatTooDeep { .. }), "{error:?}");
    assert!(!error.to_string().contains('\n'));
}
