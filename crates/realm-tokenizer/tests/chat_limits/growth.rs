//! What grows without end: loops, recursion, texts, lists, namespaces.

use realm_tokenizer::TokenizerError;

use super::{all_fail, is_limit, is_refusal, is_syntax, on_small_stack, peak_is_small, strings};

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
