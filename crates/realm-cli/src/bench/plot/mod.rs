//! `realm bench --plot`: the roofline of the machine and the ops of the model on it.
//!
//! The roofline model (Williams, Waterman, Patterson 2009) sets an op's speed against its operational
//! intensity: the operations it does for each byte it must read. Below the intensity at which both
//! roofs meet, memory is the limit, above it arithmetic.

mod draw;
mod numbers;
mod place;

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use realm_core::{Graph, backend::Precision};

use self::{
    draw::{MOST_LABELS, Mark, Picture, Roofs, Series},
    numbers::si,
};
use super::{
    measure::Measured,
    ops::{self, Group},
    plan::Work,
    report::{Ceilings, Setting},
};
use crate::{
    console::one_line,
    error::{CliError, Result},
};

/// The picture of all tests as SVG; `path` is named where it cannot be drawn.
///
/// # Errors
/// What the drawing library says.
pub(super) fn svg(
    path: &Path,
    setting: &Setting,
    graph: &Graph,
    results: &[Measured],
) -> Result<String> {
    draw::svg(&picture(setting, graph, results, SystemTime::now())).map_err(|error| {
        let path = path.display();
        CliError::Input(format!("{path}: the picture cannot be drawn: {error}; this is a bug"))
    })
}

fn picture(setting: &Setting, graph: &Graph, results: &[Measured], now: SystemTime) -> Picture {
    let name = Path::new(&setting.model).file_name();
    let name = name.map_or_else(|| setting.model.clone().into(), |name| name.to_string_lossy());
    let known = setting.name.as_ref().map(|known| format!(" ({known})"));
    let threads = setting.threads.map(|threads| format!(", {threads} threads"));
    let subtitle = format!(
        "{}: {}{} · {} products, KV cache {} · {} · realm {}",
        setting.device,
        setting.description,
        threads.unwrap_or_default(),
        setting.precision,
        setting.kv_type,
        date(now),
        env!("CARGO_PKG_VERSION")
    );
    let mut notes = vec![
        "A filled mark is one kind of op in all layers; its area grows with its part of the test's time."
            .to_owned(),
    ];
    if setting.ceilings.is_some() {
        notes[0] += " Percentages: how near it is to the roof over it.";
    } else {
        notes[0] += " The machine's limits could not be measured.";
    }
    let mut series = Vec::new();
    let mut rests = Vec::new();
    for result in results {
        let groups = ops::groups(setting, graph, result);
        let several = results.iter().filter(|other| is_prompt(other) == is_prompt(result)).count();
        series.push(of_test(result, &groups, several > 1));
        rests.extend(rest(result, &groups));
    }
    if !rests.is_empty() {
        let rests = rests.join(", ");
        notes.push(format!("Not drawn, as they do not multiply (norms, rope, …): {rests}."));
    }
    if series.iter().map(|series| series.marks.len()).sum::<usize>() > MOST_LABELS {
        notes[0] += " The marks without a label take the least time.";
    }
    Picture {
        title: xml_text(&format!("Roofline of {name}{}", known.unwrap_or_default())),
        subtitle: xml_text(&subtitle),
        notes,
        roofs: setting.ceilings.as_ref().map(|ceilings| roofs(ceilings, setting.precision)),
        series,
    }
}

fn is_prompt(result: &Measured) -> bool {
    matches!(result.test.work, Work::Prompt { .. })
}

/// The machine's limits: the peak in effect, and that of f32 where it is another one.
fn roofs(ceilings: &Ceilings, precision: Precision) -> Roofs {
    let mut peaks = vec![(ceilings.path.clone(), ceilings.ops_per_second)];
    let float = ceilings.f32_ops_per_second.filter(|_| precision == Precision::Int8);
    peaks.extend(float.map(|peak| ("f32".to_owned(), peak)));
    Roofs { bytes_per_second: ceilings.bytes_per_second, peaks }
}

/// A test's marks; `named`: each label says which test it is of.
fn of_test(result: &Measured, groups: &[Group], named: bool) -> Series {
    let test = result.test.to_string();
    let total: f64 = result.seconds.iter().sum();
    let mut marks: Vec<Mark> = groups
        .iter()
        .filter_map(|group| {
            let name = if named { format!("{test}: {}", short(group)) } else { short(group) };
            let part =
                group.limit_part().map(|part| format!(", {:.0} % of its roof", part * 100.0));
            let share = Some(group.seconds / total);
            mark(name, group.cost, group.seconds, part.unwrap_or_default(), share)
        })
        .collect();
    let all = groups.iter().map(|group| group.cost).sum();
    let limit: Option<f64> = groups.iter().map(|group| group.limit).sum();
    let part = limit.map(|limit| format!(", {:.0} % of its roofs", limit / total * 100.0));
    marks.extend(mark(format!("all of {test}"), all, total, part.unwrap_or_default(), None));
    Series { name: test, is_prompt: is_prompt(result), marks }
}

/// `None` for what a roofline has no place for: no operations, or no bytes.
fn mark(
    name: String,
    cost: realm_core::cost::Cost,
    seconds: f64,
    part: String,
    share: Option<f64>,
) -> Option<Mark> {
    let (ops, bytes) = (cost.ops as f64, cost.bytes() as f64);
    let (intensity, rate) = (ops / bytes, ops / seconds);
    let drawable = |value: f64| value.is_finite() && value > 0.0;
    let label = [xml_text(&name), format!("{}FLOP/s{part}", si(rate))];
    (drawable(intensity) && drawable(rate)).then_some(Mark { label, intensity, rate, share })
}

/// A group's name without its op's where its weights say enough.
fn short(group: &Group) -> String {
    match group.name.split_once(' ') {
        Some((_, weights)) => weights.replace(' ', " + "),
        None => group.name.to_lowercase(),
    }
}

/// The part of a test's time that no mark stands for; `None` where single ops were not timed.
fn rest(result: &Measured, groups: &[Group]) -> Option<String> {
    let drawn = groups.iter().filter(|group| group.cost.ops > 0).map(|group| group.seconds);
    let (drawn, total) = (drawn.sum::<f64>(), result.seconds.iter().sum::<f64>());
    let part = 100.0 * (1.0 - drawn / total).max(0.0);
    (drawn > 0.0).then(|| format!("{part:.1} % of the time of {}", result.test))
}

/// A text that can stand in XML, on one line.
fn xml_text(text: &str) -> String {
    one_line(text).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

/// The day in UTC: `2026-11-24`.
fn date(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut day = seconds / 86_400;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", day + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn days_have_dates() {
        let at = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(951_782_399), "2000-02-28");
        assert_eq!(at(951_782_400), "2000-02-29");
        assert_eq!(at(1_709_251_199), "2024-02-29");
        assert_eq!(at(1_735_689_599), "2024-12-31");
        assert_eq!(at(4_107_542_400), "2100-03-01");
    }

    #[test]
    fn names_are_fit_for_xml() {
        assert_eq!(xml_text("a\nb\u{ffff}"), "a\\nb\u{fffd}");
    }
}
