//! Chat templates against what `jinja2` makes of them as `transformers` sets it up.

mod common;

use std::path::Path;

use realm_tokenizer::TokenizerError;
use realm_tokenizer::chat::{Chat, ChatTemplate, Now, message};
use serde_json::{Map, Value, json};

const TEMPLATES: usize = 26;
const CASES: usize = 11;

fn read(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn moment(text: &str) -> Now {
    let numbers: Vec<u32> = text.split(['-', 'T', ':']).map(|n| n.parse().unwrap()).collect();
    let [year, month, day, hour, minute, second] = numbers[..] else { panic!("moment {text}") };
    Now::new(year, month, day, hour, minute, second).unwrap()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no text '{key}' in {value:.200}"))
}

fn render(file: &Value, case: &Value) -> Result<String, TokenizerError> {
    let bos = file["bos_token"].as_str().unwrap_or("");
    let eos = file["eos_token"].as_str().unwrap_or("");
    let empty = Map::new();
    ChatTemplate::new(text(file, "template"), bos, eos)?.render(&Chat {
        messages: case["messages"].as_array().expect("messages"),
        tools: case["tools"].as_array().map(Vec::as_slice),
        add_generation_prompt: case["add_generation_prompt"].as_bool().expect("a flag"),
        extra: case["extra"].as_object().unwrap_or(&empty),
        now: Some(moment(text(file, "now"))),
    })
}

#[test]
fn reference_conversations_are_exact() {
    let Some(folder) = common::reference().map(|root| root.join("chat")) else { return };
    let index = read(&folder.join("index.json"));
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .filter(|name| name.ends_with(".json") && name != "index.json")
        .collect();
    names.sort();
    assert_eq!(names.len(), TEMPLATES, "templates in {}", folder.display());
    assert_eq!(index["n_templates"], TEMPLATES);
    assert_eq!(index["cases"].as_array().expect("the names of cases").len(), CASES);
    let (mut wrong, mut texts, mut errors) = (Vec::new(), 0, 0);
    for name in &names {
        let file = read(&folder.join(name));
        let cases = file["cases"].as_array().expect("cases");
        let found: Vec<&Value> = cases.iter().map(|case| &case["name"]).collect();
        let listed: Vec<&Value> = index["cases"].as_array().expect("names").iter().collect();
        assert_eq!(found, listed, "the cases of {name}");
        for case in cases {
            let expected = case.get("expected").and_then(Value::as_str);
            assert!(expected.is_some() != case.get("error").is_some(), "{name} {}", case["name"]);
            let got = render(&file, case);
            let right = match (&got, expected) {
                (Ok(got), Some(expected)) => got == expected,
                (Err(error), None) => !error.to_string().contains('\n'),
                _ => false,
            };
            (texts, errors) =
                (texts + usize::from(got.is_ok()), errors + usize::from(got.is_err()));
            if !right {
                let case_name = &case["name"];
                wrong.push(format!("{name} {case_name}\n expected {expected:?}\n got {got:?}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} wrong:\n{}",
        wrong.len(),
        TEMPLATES * CASES,
        wrong.join("\n")
    );
    println!("{texts} texts and {errors} errors as expected");
}

/// The text that a template of this test makes of one message.
fn rendered(source: &str) -> Result<String, TokenizerError> {
    let extra = json!({
        "s": "  Hello, World!\n", "u": "日本é", "f": 1.5, "big": 1e16, "small": 1e-7, "none": null,
        "list": [3, 1, 2], "map": { "b": 1, "a": "x", "items": [true, null] },
        "people": [{ "role": "user", "x": 1 }, { "role": "tool", "x": null }],
    });
    ChatTemplate::new(source, "<s>", "</s>")?.render(&Chat {
        messages: &[message("user", "Hi there")],
        tools: None,
        add_generation_prompt: true,
        extra: extra.as_object().expect("a map"),
        now: Now::new(2024, 7, 26, 12, 34, 56),
    })
}

/// Templates and their texts, each as jinja2 3.1.6 renders it in the environment of transformers.
const SNIPPETS: &[(&str, &str)] = &[
    (
        "{{ bos_token }}{{ messages[0].content }}{{ messages[-1]['role'] }}{{ eos_token }}",
        "<s>Hi thereuser</s>",
    ),
    (
        "{{ tools }} {{ tools is defined }} {{ documents is none }} {{ add_generation_prompt }}",
        "None True True True",
    ),
    ("a\n{% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"),
    ("a\n  {%- if true %}\n  b\n  {%- endif -%}\n  c\n\n", "a  bc\n"),
    ("a\r\n{% if true %}\r\nb\r{% endif %}\r\nc\r\n", "a\nb\nc"),
    ("  {% if true %}x{% endif %}  \n  {%+ if true %}y{% endif %}\n  {# c #}\nz", "x  \n  yz"),
    ("{% generation %}\ngen\n{% endgeneration %}\nx", "gen\nx"),
    ("{% raw %}{{ raw|x }}{% endraw %}{# {{ x|y }} #}!", "{{ raw|x }}!"),
    (r"{{ 'a\nb\d\x41\u00e9\101\'' }}", "a\nb\\dAéA'"),
    ("{{ 'multi\nline' }}", "multi\nline"),
    (
        "{{ s.strip() }}|{{ s|trim }}|{{ s.lstrip(' H') }}|{{ s.rstrip('!\\n') }}",
        "Hello, World!|Hello, World!|ello, World!\n|  Hello, World",
    ),
    (
        "{{ 'a,b,,c'.split(',') }} {{ 'a,b,,c'.split(',', 1)[-1] }} {{ ' a  b '.split() }}",
        "['a', 'b', '', 'c'] b,,c ['a', 'b']",
    ),
    (
        "{{ 'a b c'.rsplit(' ', 1) }} {{ 'a  b c'.split(none, 1) }} {{ 'a\\nb\\r\\nc'.splitlines() }}",
        "['a b', 'c'] ['a', 'b c'] ['a', 'b', 'c']",
    ),
    (
        "{{ 'k=v=w'.partition('=') }} {{ 'k'.rpartition('=') }} {{ 'pre-x'.removeprefix('pre-') }}",
        "('k', '=', 'v=w') ('', '', 'k') x",
    ),
    (
        "{{ u[::-1] }} {{ u[0] }} {{ u[-1] }} {{ u[1:] }} {{ u|length }} {% for c in u %}{{ c }}.{% endfor %}",
        "é本日 日 é 本é 3 日.本.é.",
    ),
    (
        "{{ u.startswith('日') }} {{ 'ab'.endswith(('a', 'b')) }} {{ 'ab'.find('b') }} {{ \"they're\".title() }}",
        "True True 1 They'Re",
    ),
    (
        "{{ list[::-1] }} {{ list[1:] }} {{ list + [4] }} {{ list|sort|join('-') }} {{ list[-1] }} {{ list[9] is defined }}",
        "[2, 1, 3] [1, 2] [3, 1, 2, 4] 1-2-3 2 False",
    ),
    (
        "{{ map }} {{ map.items()|list }} {{ map.get('z') }} {{ map.get('z', 5) }} {{ map['a'] }}",
        "{'b': 1, 'a': 'x', 'items': [True, None]} [('b', 1), ('a', 'x'), ('items', [True, None])] None 5 x",
    ),
    (
        "{% for k, v in map|items %}{{ k }}={{ v }};{% endfor %}{% for k in map %}{{ k }}{% endfor %}",
        "b=1;a=x;items=[True, None];baitems",
    ),
    (
        "{{ map|tojson }} {{ '<&\\'é\\x07>'|tojson }} {{ [1.0, 1e20, 1e-7, none]|tojson }}",
        "{\"b\": 1, \"a\": \"x\", \"items\": [true, null]} \"<&'é\\u0007>\" [1.0, 1e+20, 1e-07, null]",
    ),
    (
        "{{ {'b': [1, {}], 'a': []}|tojson(indent=2, sort_keys=true) }}",
        "{\n  \"a\": [],\n  \"b\": [\n    1,\n    {}\n  ]\n}",
    ),
    (
        "{{ [u, 1]|tojson(ensure_ascii=true, separators=(',', ':')) }}",
        "[\"\\u65e5\\u672c\\u00e9\",1]",
    ),
    (
        "{{ f }} {{ big }} {{ small }} {{ f ~ big ~ none ~ true }} {{ 7 / 7 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 0.5 }}",
        "1.5 1e+16 1e-07 1.51e+16NoneTrue 1.0 -4 2 1.4142135623730951",
    ),
    (
        "{{ [\"it's\", 'a\\n\\\\'] }} {{ (1,) }} {{ () }} {{ [1, 2] == (1, 2) }} {{ 1 == 1.0 }} {{ 1 < 2 < 3 }}",
        "[\"it's\", 'a\\n\\\\'] (1,) () False True True",
    ),
    (
        "{{ x }}|{{ x is defined }}|{{ map.z is defined }}|{{ x|default('d') }}|{{ none|default('d') }}|{{ ''|default('d', true) }}",
        "|False|False|d|None|d",
    ),
    (
        "{{ s is string }} {{ s is iterable }} {{ none is iterable }} {{ map is mapping }} {{ map is sequence }} {{ list is mapping }} {{ true is number }} {{ true is integer }} {{ x is string }}",
        "True True False True True False True False False",
    ),
    (
        "{{ people|selectattr('x', 'none')|map(attribute='role')|list }} {{ people|map(attribute='x')|join(',') }}",
        "['tool'] 1,None",
    ),
    (
        "{{ 'a' if none else 'b' }}{{ 'c' if none }} {{ none or 'x' }} {{ not list }} {{ 'a' in 'cab' }} {{ 'b' in map }} {{ 5 not in list }}",
        "b x False True True True",
    ),
    (
        "{{ list|length * 2 ~ 'x' }} {{ 'x' ~ 2 * 3 }} {{ -1 ~ '' }} {{ [list, 1] ~ '' }}",
        "6x x6 -1 [[3, 1, 2], 1]",
    ),
    (
        "{% set ns = namespace(n=0, l=[]) %}{% for x in list if x > 1 %}{% set ns.n = ns.n + x %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.n }} {{ ns.l }}",
        "5 [3, 2]",
    ),
    (
        "{% macro m(a, b='z') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }} {{ m(1, b=2)|upper }} {{ m('<') ~ '&' }}",
        "1z 12 <z&",
    ),
    ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}hi{% endcall %}", "[hi]"),
    (
        "{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ loop.index }}{{ x }}{{ loop.last }} {% endfor %}",
        "13False 32True ",
    ),
    (
        "{% for a in [1, [2, [3]]] recursive %}{% if a is iterable %}({{ loop(a) }}){% else %}{{ a }}{% endif %}{% endfor %}",
        "1(2(3))",
    ),
    (
        "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set x %}block{% endset %}{{ x|upper }}{% filter upper %}f{% endfilter %}",
        "12BLOCKF",
    ),
    (
        "{{ ', '.join(['a', 'b']) }} {{ 'abc'|join('-') }} {{ '%s and %d'|format('a', 3) }} {{ '{}-{x}'.format(1, x=2) }}",
        "a, b a-b-c a and 3 1-2",
    ),
    (
        "{{ '5'|int + 1 }} {{ 'x'|int }} {{ 'x'|float }} {{ 2.5|int }} {{ '<'|e }} {{ range(3)|list }} {{ range(3, 0, -2)|list }}",
        "6 0 0.0 2 &lt; [0, 1, 2] [3, 1]",
    ),
    (
        "{{ strftime_now('%d %b %Y, %A %H:%M:%S %j %I%p %y %%') }}",
        "26 Jul 2024, Friday 12:34:56 208 12PM 24 %",
    ),
];

#[test]
fn snippets_render_as_in_jinja2() {
    for (source, expected) in SNIPPETS {
        assert_eq!(rendered(source).as_deref(), Ok(*expected), "{source}");
    }
}

#[test]
fn what_fails_in_jinja2_fails() {
    for source in [
        "{{ x.y }}",
        "{{ x + 'a' }}",
        "{{ 'a' + 1 }}",
        "{{ none + 'a' }}",
        "{% for x in none %}{% endfor %}",
        "{% for x in 7 %}{% endfor %}",
        "{{ none|length }}",
        "{{ none.x.y }}",
        "{{ list.append(1) }}",
        "{{ map.update({}) }}",
        "{{ ','.join([1]) }}",
        "{{ 'a'.nothing() }}",
        "{{ nothing() }}",
        "{{ map|nothing }}",
        "{{ map is nothing }}",
        "{{ x|tojson }}",
        "{{ 1 / 0 }}",
        "{{ 'a'.split('') }}",
    ] {
        match rendered(source) {
            Err(TokenizerError::TemplateFailed { line: 1, .. }) => {}
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[test]
fn moments_print_as_in_python() {
    let all = "%a %A %b %B %c %d %D %e %F %g %G %h %H %I %j %k %l %m %M %n %p %P %r %R %s %S %t %T %u %U %V %w %W %x %X %y %Y %% %-d %-H %E %";
    let cases = [
        (
            Now::new(2000, 2, 29, 0, 0, 0),
            "Tue Tuesday Feb February Tue Feb 29 00:00:00 2000 29 02/29/00 29 2000-02-29 00 2000 Feb 00 12 060  0 12 02 00 \n AM am 12:00:00 AM 00:00 951782400 00 \t 00:00:00 2 09 09 2 09 02/29/00 00:00:00 00 2000 % 29 0 %E %",
        ),
        (
            Now::new(2027, 1, 3, 23, 5, 9),
            "Sun Sunday Jan January Sun Jan  3 23:05:09 2027 03 01/03/27  3 2027-01-03 26 2026 Jan 23 11 003 23 11 01 05 \n PM pm 11:05:09 PM 23:05 1799017509 09 \t 23:05:09 7 01 53 0 00 01/03/27 23:05:09 27 2027 % 3 23 %E %",
        ),
    ];
    for (now, expected) in cases {
        assert_eq!(now.expect("a moment").strftime(all), expected);
    }
    assert_eq!(Now::from_unix(951_782_400), Now::new(2000, 2, 29, 0, 0, 0).unwrap());
    assert_eq!(Now::from_unix(-1), Now::new(1969, 12, 31, 23, 59, 59).unwrap());
    assert_eq!(Now::from_unix(i64::MIN), Now::new(1, 1, 1, 0, 0, 0).unwrap());
    assert_eq!(Now::from_unix(i64::MAX), Now::new(9999, 12, 31, 23, 59, 59).unwrap());
    for (year, month, day, hour) in [
        (2023, 2, 29, 0),
        (1900, 2, 29, 0),
        (2024, 13, 1, 0),
        (2024, 4, 31, 0),
        (0, 1, 1, 0),
        (2024, 1, 0, 0),
        (2024, 1, 1, 24),
    ] {
        assert_eq!(Now::new(year, month, day, hour, 0, 0), None);
    }
    let text = Now::clock().strftime("%Y");
    assert!((2024..10_000).contains(&text.parse::<u32>().expect("a year")));
}

#[test]
fn one_template_serves_many_threads() {
    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }
    let template = shared(ChatTemplate::new("{{ messages[0].content }}", "", "").expect("valid"));
    std::thread::scope(|scope| {
        for number in 0..4 {
            let template = &template;
            scope.spawn(move || {
                let content = number.to_string();
                let messages = [message("user", &content)];
                let chat = Chat {
                    messages: &messages,
                    tools: None,
                    add_generation_prompt: false,
                    extra: &Map::new(),
                    now: None,
                };
                assert_eq!(template.render(&chat), Ok(content));
            });
        }
    });
}
