//! Numbers at the ends of their ranges.

use super::{on_small_stack, peak_is_small};

const NUMBERS: &[&str] = &[
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

/// Expressions of a number `N`.
const USES: &[&str] = &[
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

/// Numbers at the ends of their ranges: any result, but no panic and nothing large.
#[test]
fn odd_numbers_do_no_harm() {
    for each in USES {
        for number in NUMBERS {
            let source = format!("{{{{ {} }}}}", each.replace('N', &format!("({number})")));
            let text = on_small_stack(&source).unwrap_or_default();
            assert!(text.len() < 10_000_000, "{source}: {} bytes", text.len());
        }
    }
    peak_is_small();
}
