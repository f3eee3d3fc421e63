//! Templates that mean harm: each must end with a one-line error, soon, in little memory, and on a
//! small stack.
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
fn loops_end() {
    let sources = [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(10**18) %}x{% endfor %}",
        "{% for i in range(0 - 2**62, 2**62, 3) %}x{% endfor %}",
        "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}",
        "{% for i in range(900000) %}{{ messages }}{% endfor %}",
        "{% for a in [1] * 3 %}{% endfor %}{% for i in range(999) %}{% for j in range(999) %}\
         {% for k in range(999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{{ range(999999)|list|length + range(999999)|list|length }}",
        "{{ range(900000)|sort|unique|list|length }}",
    ];
    all_fail(&strings(sources), is_refusal);
}

#[test]
fn recursion_ends() {
    let sources = [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro m() %}{% if 0 %}{{ caller() }}{% endif %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}",
        "{% macro m() %}{% for i in [1] %}{% if i %}{% with x = i %}{{ m() ~ m() }}{% endwith %}\
         {% endif %}{% endfor %}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
        "{% for x in [1, 2] recursive %}{{ loop([x, x]) }}{{ loop([x]) }}{% endfor %}",
        "{% set ns = namespace() %}{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}",
    ];
    all_fail(&strings(sources), is_limit);
    let doubling =
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}x{% endmacro %}";
    all_fail(&[format!("{doubling}{{{{ m(40) }}}}")], is_limit);
    let includes = ["{% include 'chat' %}", "{% extends 'chat' %}", "{% import 'chat' as c %}"];
    all_fail(&strings(includes), is_syntax);
}

#[test]
fn texts_stay_small() {
    let mut sources = strings([
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ ('x' * 1000000) * 1000000 }}",
        "{{ 'x' * 2**70 }}",
        "{{ ('x' * 90000000) ~ ('x' * 90000000) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x|replace('', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x|tojson|tojson %}{% endfor %}",
        "{% set ns = namespace(x='<') %}{% for i in range(99) %}{% set ns.x = (ns.x ~ ns.x)|string|e|string %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = '{} {}'.format(ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = '%s %s'|format(ns.x, ns.x) %}{% endfor %}",
        "{% set s = 'x' * 10000000 %}{{ s.join(s.split('x')) }}",
        "{% set s = 'x' * 5000000 %}{{ s.split('x')|join(s) }}",
        "{% set s = 'x\n' * 10000000 %}{{ s|indent(1000) }}",
        "{{ 'x'|indent(10**9) }}{{ ('\n' * 99999)|indent(10**9) }}",
        "{{ '%0999999999d'|format(1) }}",
        "{{ '%*d'|format(999999999, 1) }}",
        "{{ '%.999999999f'|format(1.0) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ '{:.999999999f}'.format(1.0) }}",
        "{{ 'x'.center(10**9) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ '1'.zfill(10**9) }}",
        "{{ [1]|tojson(indent=10**9) }}",
        "{{ [1]|tojson(separators=('x' * 100000, 'y')) }}",
        "{{ range(900000)|join('x' * 100000) }}",
        "{{ strftime_now('%c' * 1000000) }}",
        "{{ raise_exception('x' * 10**9) }}",
    ]);
    sources.push(format!("{{% set x = 'xy' %}}{}", "{% set x = x + x %}".repeat(60)));
    sources
        .push("{{ messages[0].content.join(range(900000)|map('string')|list) * 999 }}".to_owned());
    all_fail(&sources, is_refusal);
}

#[test]
fn lists_stay_small_and_shallow() {
    let uses = [
        "{{ x }}",
        "{{ x == y }}",
        "{{ x < y }}",
        "{{ x in [y] }}",
        "{{ x ~ '' }}",
        "{{ x|string|length }}",
        "{{ x|tojson }}",
        "{{ x|pprint }}",
        "{{ [x, y]|sort }}",
        "{{ [x, y]|unique|list }}",
        "{{ [x, y]|max }}",
        "{{ x|join }}",
        "{{ [[x]]|groupby(0)|list }}",
        "{{ '%s'|format(x) }}",
        "{{ '{}'.format(x) }}",
        "{{ x is eq y }}",
        "{{ [x].count(y) }}",
        "{{ [x, 1].index(y) }}",
        "{{ x|upper }}",
        "{{ x|replace('a', 'b') }}",
        "{{ raise_exception(x) }}",
        "{{ {'k': x} == {'k': y} }}",
        "{{ [x, 1]|map('string')|list }}",
        "{{ x|dictsort }}",
    ];
    let mut sources = Vec::new();
    for each in uses {
        let grown = |step: &str| {
            format!(
                "{{% set x = [1] %}}{}{{% set y = x %}}{}{each}",
                step.repeat(30),
                step.repeat(30)
            )
        };
        sources.push(grown("{% set x = [x, x] %}{% set y = [y, y] %}"));
        sources.push(grown("{% set x = {'a': x, 'b': x} %}{% set y = {'a': y, 'b': y} %}"));
        sources.push(grown("{% set x = (x, x) %}{% set y = (y, y) %}"));
        sources.push(grown("{% set x = x, x %}{% set y = y, y %}"));
        sources.push(grown("{% set x = x + x %}{% set y = y + y %}"));
        sources.push(format!(
            "{{% set ns = namespace(x=[1], y=[1]) %}}{{% for i in range(99999) %}}\
             {{% set ns.x = [ns.x] %}}{{% set ns.y = [ns.y] %}}{{% endfor %}}\
             {{% set x = ns.x %}}{{% set y = ns.y %}}{each}"
        ));
    }
    for source in sources {
        match on_small_stack(&source) {
            Err(error) => assert!(is_refusal(&error), "{source:.300}\n {error:?}"),
            // Some uses need not look deep: the keys of a map, the order of two first items.
            Ok(text) => assert!(text.len() < 100, "{source:.300}\n {} bytes", text.len()),
        }
    }
    peak_is_small();
}

#[test]
fn lists_are_not_repeated() {
    let sources = [
        "{{ [0] * 100000000 }}",
        "{{ [[0] * 100000000] * 100000000 }}",
        "{{ [[0] * 100000000] * 100000000 == [[0] * 100000000] * 100000000 }}",
        "{{ ([[0] * 100000000] * 100000000) is eq [[0] * 100000000] }}",
        "{{ 100000000 * (0, 1) }}",
        "{% set x = messages %}{{ x * 9 }}",
        "{{ range(5) * 100000000 }}",
        "{{ messages[0:] * 100000000 }}",
        "{{ -9 * [1] }}",
    ];
    all_fail(&strings(sources), is_refusal);
}

#[test]
fn namespaces_hold_no_namespaces() {
    let stores = [
        "{% set ns.a = ns %}",
        "{% set ns.a = [ns] %}",
        "{% set ns.a = {'a': ns} %}",
        "{% set ns.a = (ns, 1) %}",
        "{% set ns.a = 1, ns %}",
        "{% set ns.a = ns if true else 1 %}",
        "{% set ns.a = none or ns %}",
        "{% set ns.a = (ns) %}",
        "{% set ns.a = [ns]|first %}",
        "{% set ns.a = [1, ns]|last %}",
        "{% set ns.a = x|default(ns) %}",
        "{% set ns.a = {'a': ns}.a %}",
        "{% set ns.a = {'a': ns}|items %}",
        "{% set other = ns %}{% set ns.a = other %}",
        "{% set other = namespace(ns=ns) %}{% set ns.a = other %}",
        "{% set other = namespace({'ns': ns}) %}{% set ns.a = other %}",
        "{% set other = dict(ns=ns) %}{% set ns.a = other %}",
        "{% for x in [ns] %}{% set ns.a = x %}{% endfor %}",
        "{% macro m(x) %}{% set x.a = x %}{{ x }}{% endmacro %}{{ m(ns) }}",
        "{% for x in [1] %}{% set ns.a = loop %}{% endfor %}",
        "{% macro m() %}{% endmacro %}{% set ns.a = m %}",
        "{% set ns.a, b = ns, 1 %}",
        "{% set ns.a = [ns, 1]|batch(1)|list %}",
        "{% set ns.a = [ns]|map('default')|list %}",
    ];
    let whole = |store: &&str| {
        format!(
            "{{% set ns = namespace() %}}{store}{{{{ ns }}}}{{{{ ns == ns.a }}}}{{{{ ns ~ ns }}}}"
        )
    };
    let refused = |error: &TokenizerError| matches!(error, TokenizerError::TemplateFailed { .. });
    all_fail(&stores.iter().map(whole).collect::<Vec<_>>(), refused);
    // What templates do with namespaces goes on working.
    let good = "{% set ns = namespace(a=[], b='') %}{% macro m(n) %}{% set n.b = n.b ~ 'x' %}\
                {% endmacro %}{{ m(ns) }}{% for m in messages %}{% set ns.a = ns.a + [m.role] %}\
                {% endfor %}{{ ns.a }} {{ ns.b }}";
    assert_eq!(on_small_stack(good).unwrap(), "['user', 'assistant'] x");
}

#[test]
fn sources_are_not_deep() {
    const MANY: usize = 25_000;
    let around = |open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(MANY), close.repeat(MANY))
    };
    let sources = [
        format!("{{{{ {} }}}}", around("[", "1", "]")),
        format!("{{{{ {} }}}}", around("(", "1", ")")),
        format!("{{{{ {} }}}}", around("{'a': ", "1", "}")),
        format!("{{{{ {} }}}}", around("x(", "1", ")")),
        format!("{{{{ {} }}}}", around("x[", "1", "]")),
        format!("{{{{ {} }}}}", around("x|default(", "1", ")")),
        format!("{{{{ {}1 }}}}", "-".repeat(MANY)),
        format!("{{{{ {}1 }}}}", "not ".repeat(MANY)),
        format!("{{{{ x{} }}}}", " + x".repeat(MANY)),
        format!("{{{{ x{} }}}}", " ~ 'a'".repeat(MANY)),
        format!("{{{{ x{} }}}}", " and x".repeat(MANY)),
        format!("{{{{ x{} }}}}", " == x".repeat(MANY)),
        format!("{{{{ x{} }}}}", " ** 1".repeat(MANY)),
        format!("{{{{ x{} }}}}", ".a".repeat(MANY)),
        format!("{{{{ x{} }}}}", "[0]".repeat(MANY)),
        format!("{{{{ x{} }}}}", "()".repeat(MANY)),
        format!("{{{{ x{} }}}}", "|trim".repeat(MANY)),
        format!("{{{{ x{} }}}}", " is true".repeat(MANY)),
        format!("{{{{ x{} }}}}", " is not true".repeat(MANY)),
        format!("{{{{ x{} }}}}", " if x else x".repeat(MANY)),
        format!("{{{{ x{} }}}}", " if x".repeat(MANY)),
        format!("{{{{ x{} }}}}", " not in x".repeat(MANY)),
        format!("{{% set x{} %}}{{% endset %}}", "|trim".repeat(MANY)),
        format!("{{% filter trim{} %}}{{% endfilter %}}", "|trim".repeat(MANY)),
        format!("{{% for {} in x %}}{{% endfor %}}", around("(", "x", ")")),
        format!("{{% set {} = x %}}", around("(", "x", ")")),
        format!("{{% set x{} = x %}}", ".x".repeat(MANY)),
        format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(MANY)),
        around("{% if x %}", "", "{% endif %}"),
        around("{% if x %}{% elif y %}", "", "{% endif %}"),
        around("{% for a in x %}", "", "{% endfor %}"),
        around("{% for a in x %}{% else %}", "", "{% endfor %}"),
        around("{% macro m() %}", "", "{% endmacro %}"),
        around("{% call m() %}", "", "{% endcall %}"),
        around("{% set x %}", "", "{% endset %}"),
        around("{% with x = 1 %}", "", "{% endwith %}"),
        around("{% filter trim %}", "", "{% endfilter %}"),
        around("{% autoescape x %}", "", "{% endautoescape %}"),
        around("{% generation %}", "", "{% endgeneration %}"),
        "{% if x %}".repeat(MANY),
        format!("{{{{ {} }}}}", "[".repeat(MANY)),
    ];
    all_fail(&sources, is_syntax);
}

/// The deepest that is allowed compiles and runs, on a small stack.
#[test]
fn the_deepest_allowed_runs() {
    let around = |open: &str, inner: &str, close: &str, many: usize| {
        format!("{}{inner}{}", open.repeat(many), close.repeat(many))
    };
    let lists = format!("{{{{ {} }}}}", around("[", "1", "]", 30));
    let sources = [
        (lists.clone(), around("[", "1", "]", 30)),
        (format!("{{{{ {} }}}}", around("[", "1", "]", 40)), around("[", "1", "]", 40)),
        (format!("{{{{ 1{} }}}}", " + 1".repeat(299)), "300".to_owned()),
        (format!("{{{{ {}1 }}}}", "not ".repeat(299)), "False".to_owned()),
        (format!("{{{{ 'x'{} }}}}", "|trim".repeat(299)), "x".to_owned()),
        (
            around("{% if 1 %}{% for a in [1] %}", &lists, "{% endfor %}{% endif %}", 40),
            around("[", "1", "]", 30),
        ),
        (format!("{{% if none %}}{}{{% endif %}}", "{% elif none %}".repeat(79)), String::new()),
        (
            format!(
                "{{% macro m(n) %}}{}{{% endmacro %}}{{{{ m(20) }}}}",
                around("{% if n %}", "{{ m(n - 1) }}", "{% endif %}", 30)
            ),
            String::new(),
        ),
    ];
    for (source, expected) in sources {
        assert_eq!(on_small_stack(&source).as_deref(), Ok(&*expected), "{source:.200}");
    }
}

/// Numbers at the ends of their ranges: any result, but no panic and nothing large.
#[test]
fn odd_numbers_do_no_harm() {
    let numbers = [
        "10**9",
        "10**18",
        "2**62 * 2 - 1",
        "0 - 2**63",
        "2**64",
        "10**10**10",
        "1e308",
        "-1e308",
        "1e-320",
        "1e999",
        "0.5",
        "-1",
        "0",
        "'7'",
        "true",
        "none",
        "[]",
        "messages",
    ];
    let uses = [
        "range(N)",
        "range(0 - 2**63, N, 2**62)",
        "range(N, 0, -1)",
        "1|round(N)",
        "1.5|round(N)",
        "N|round",
        "N|int",
        "N|float",
        "N|abs",
        "N // 7",
        "7 // N",
        "7 % N",
        "N ** N",
        "2 ** N",
        "N * N",
        "N - 1",
        "-N",
        "N ~ N",
        "'x' * N",
        "N|string",
        "N|tojson",
        "[N]|tojson(indent=N)",
        "'abc'[N]",
        "'abc'[N:]",
        "'abc'[:N]",
        "'abc'[::N]",
        "messages[N]",
        "messages[N:N:N]",
        "messages|batch(N)|list",
        "messages|slice(N)|list",
        "'x'|indent(N)",
        "'x'.center(N)",
        "'7'.zfill(N)",
        "'%d'|format(N)",
        "'%c'|format(N)",
        "'%x %o %e %5.3f'|format(N, N, N, N)",
        "'{:x}'.format(N)",
        "'{}'.format(N)",
        "'{:,}'.format(N)",
        "'a b'.split(none, N)",
        "'a b'.rsplit(' ', N)",
        "'aa'.replace('a', 'b', N)",
        "[N, 1]|sort",
        "[N, 1]|sum",
        "[N, 1]|max",
        "{N: 1}",
        "{N: 1}[N]",
        "N is divisibleby(N)",
        "N is odd",
        "N == N",
        "N < 1",
        "N in [N]",
        "'12'|int(N)",
        "'12'|int(0, N)",
        "[1]|join(N)",
        "strftime_now(N)",
        "dict(a=N)",
        "namespace(a=N)",
        "joiner(N)",
        "'a'|default(N)",
        "raise_exception(N)",
    ];
    for each in uses {
        for number in numbers {
            let source = format!("{{{{ {} }}}}", each.replace('N', &format!("({number})")));
            let text = on_small_stack(&source).unwrap_or_default();
            assert!(text.len() < 10_000_000, "{source}: {} bytes", text.len());
        }
    }
    peak_is_small();
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
