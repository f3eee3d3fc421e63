//! Sources that nest deeply.

use super::{all_fail, is_syntax, on_small_stack};

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
