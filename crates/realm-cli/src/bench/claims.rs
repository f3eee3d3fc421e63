//! `realm bench --claims`: what Realm promises, measured in one run.

use realm_core::{
    DType, Graph,
    backend::{Backend, KvSpec, KvType},
    graph::WeightInfo,
};
use realm_runtime::{
    EngineOptions, Model,
    device::{self, Bench as Kernels, Comparison, Device, DeviceOptions},
    memory::human,
};
use serde_json::{Value, json};

use super::{
    Bench, BenchArgs, Ceilings, Plan, Progress, ceilings,
    measure::Measured,
    plan::Test,
    report::{fractions, percent},
};
use crate::{
    console::{self, one_line},
    error::Result,
    load, stats,
};

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Must {
    /// So many times as fast.
    Faster(f64),
    /// At most this part of the memory.
    Smaller(f64),
}

/// A side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Side {
    /// What it is: `cuda:0`, `unpacked to bf16 in memory, then multiplied`.
    pub(super) way: String,
    /// Seconds, or bytes.
    pub(super) amount: f64,
    /// The part of a limit that it reaches, where there is one.
    pub(super) fraction: Option<f64>,
}

/// A comparison that was made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    /// What was done, in numbers.
    pub(super) work: String,
    pub(super) ours: Side,
    pub(super) plain: Side,
    /// What the fractions are of.
    pub(super) limit: Option<String>,
}

/// A promise, and what came of it: or why it could not be looked at.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    pub(super) name: &'static str,
    pub(super) must: Must,
    pub(super) outcome: std::result::Result<Outcome, String>,
}

impl Must {
    /// The ratio as it is promised: of the plain way's time to ours, or of our bytes to the plain ones.
    fn ratio(self, outcome: &Outcome) -> f64 {
        match self {
            Self::Faster(_) => outcome.plain.amount / outcome.ours.amount,
            Self::Smaller(_) => outcome.ours.amount / outcome.plain.amount,
        }
    }

    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::Faster(least) => ratio >= least,
            Self::Smaller(most) => ratio <= most,
        }
    }

    fn bound(self) -> f64 {
        match self {
            Self::Faster(bound) | Self::Smaller(bound) => bound,
        }
    }

    fn said(self) -> String {
        match self {
            Self::Faster(least) => format!("≥ {least}"),
            Self::Smaller(most) => format!("≤ {most}"),
        }
    }

    fn amount(self, amount: f64) -> String {
        match self {
            Self::Faster(_) => match amount {
                1.0.. => format!("{amount:.2} s"),
                1e-3.. => format!("{:.2} ms", amount * 1e3),
                _ => format!("{:.1} µs", amount * 1e6),
            },
            Self::Smaller(_) => human(amount as u64),
        }
    }
}

impl Claim {
    /// The ratio and whether it is as promised.
    fn verdict(&self) -> Option<(f64, bool)> {
        let ratio = self.must.ratio(self.outcome.as_ref().ok()?);
        Some((ratio, self.must.holds(ratio)))
    }
}

/// The promises of kernels.
const KERNELS: [(&str, Must, Comparison); 5] = [
    ("unpacking in registers, one row", Must::Faster(3.0), Comparison::FusedRow),
    // The product alone takes most of the time here: not slower is what can be asked.
    ("unpacking in registers, 512 rows", Must::Faster(1.0), Comparison::FusedRows),
    ("unpacking on the GPU, not the CPU", Must::Faster(3.0), Comparison::CopiedRow),
    ("attention without its matrix", Must::Faster(5.0), Comparison::Attention),
    ("half precision, products", Must::Faster(2.0), Comparison::Half),
];

/// Measures all that can be measured, and prints it.
///
/// # Errors
/// A model that cannot be loaded, or the system's refusal to take output. What a device fails of is a
/// claim's outcome.
pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let model = args.model.open()?;
    let mut device = args.engine.device.open()?;
    let name = device.backend().info().name.clone();
    let on_gpu = !device.is_cpu();
    let mut claims = Vec::new();
    if on_gpu {
        claims.extend(speeds(args, &model, &mut device)?);
    } else {
        let none = |name, must| Claim { name, must, outcome: Err("needs a GPU".into()) };
        claims.extend(GPU.map(|(name, must)| none(name, must)));
    }
    let mut kernels = match on_gpu {
        true => Kernels::open(&name).map_err(|reason| one_line(&reason.to_string())),
        false => Err("needs a GPU".to_owned()),
    };
    for (name, must, comparison) in KERNELS {
        let outcome = match &mut kernels {
            Ok(kernels) => {
                console::with_spinner(format!("measuring: {name}"), || compare(kernels, comparison))
            }
            Err(why) => Err(why.clone()),
        };
        claims.push(Claim { name, must, outcome });
    }
    claims.extend(memory(&model, &**device.backend(), args.step as usize));
    let note = device::is_emulated(&name)
        .then(|| format!("{name} imitates a GPU: its times, and ratios of them, mean nothing"));
    let mut out = console::Output::new();
    if args.json {
        let json = json(&claims, &name, note.as_deref());
        out.line(serde_json::to_string_pretty(&json).unwrap_or_default())?;
    } else {
        out.text(&table(&claims, &name, note.as_deref()))?;
    }
    out.flush()
}

/// The promises of whole models.
const GPU: [(&str, Must); 2] =
    [("GPU over CPU, generation", Must::Faster(7.0)), ("GPU over CPU, prompts", Must::Faster(7.0))];

/// Generation and prompts of the model on the device, and on the CPU alone.
fn speeds(args: &BenchArgs, model: &Model, device: &mut Device) -> Result<Vec<Claim>> {
    let first = |list: &[u32]| vec![list.first().copied().unwrap_or(0).max(1) as usize];
    let (prompt, generate) = (first(&args.prompt), first(&args.generate));
    let plan = Plan::new(&prompt, &generate, &[0], &[1], args.step as usize);
    let options = EngineOptions { times: false, ..super::options(args, &plan)? };
    let mut cpu =
        device::open(&DeviceOptions { name: "cpu".into(), ..args.engine.device.options() })?;
    let ours = measure(args, model, device, &options, &plan)?;
    let plain = measure(args, model, &mut cpu, &options, &plan)?;
    let claim = |(at, (name, must)): (usize, (&'static str, Must))| {
        // The plan has the prompt first.
        let at = 1 - at;
        let test = plan.tests[at];
        let (ours, plain) = (&ours[at], &plain[at]);
        let limit =
            if at == 0 { "of each device's arithmetic" } else { "of each device's bandwidth" };
        Claim {
            name,
            must,
            outcome: Ok(Outcome {
                work: test.to_string(),
                ours: ours.clone(),
                plain: plain.clone(),
                limit: Some(limit.into()),
            }),
        }
    };
    Ok(GPU.into_iter().enumerate().map(claim).collect())
}

/// The tests of a plan on a device: the seconds of each.
fn measure(
    args: &BenchArgs,
    model: &Model,
    device: &mut Device,
    options: &EngineOptions,
    plan: &Plan,
) -> Result<Vec<Side>> {
    let asked = device.backend().info().resolve(options.precision);
    let precision = stats::in_effect(model.graph(), asked);
    let limits = ceilings(device, precision, false);
    let engine = load::engine(model, device, options)?;
    let way = format!("{} in {precision}", engine.backend().info().name);
    let mut bench = Bench::new(engine, model.vocabulary(), args.repetitions, false);
    let progress = Progress::new(plan.tests.len() as u64 * (1 + u64::from(args.repetitions)));
    let side = |test: &Test| {
        let measured = bench.run(test, &progress)?;
        Ok(side(&way, &measured, limits.as_ref(), test))
    };
    plan.tests.iter().map(side).collect()
}

fn side(way: &str, measured: &Measured, limits: Option<&Ceilings>, test: &Test) -> Side {
    let prompt = matches!(test.work, super::plan::Work::Prompt { .. });
    let parts = limits.map(|limits| fractions(limits, measured));
    Side {
        way: way.into(),
        amount: test.tokens() as f64 / measured.rates().median,
        fraction: parts.map(|(bandwidth, peak)| if prompt { peak } else { bandwidth }),
    }
}

fn compare(kernels: &mut Kernels, comparison: Comparison) -> std::result::Result<Outcome, String> {
    let pair = kernels.compare(comparison).map_err(|error| one_line(&error.to_string()))?;
    let side = |timed: device::Timed| Side {
        way: timed.way.into(),
        amount: timed.seconds,
        fraction: Some(timed.fraction),
    };
    Ok(Outcome {
        work: kernels.size(comparison),
        ours: side(pair.ours),
        plain: side(pair.plain),
        limit: Some(format!("of {}", pair.limit)),
    })
}

/// What the model's matrices and its cache take in f16 and in f32, as the device keeps them.
pub(super) fn memory(model: &Model, backend: &dyn Backend, tokens: usize) -> [Claim; 2] {
    let graph = model.graph();
    let weights = |dtype| Side {
        way: format!("weights in {dtype}"),
        amount: matrices(graph)
            .map(|info| backend.weight_bytes(&WeightInfo { dtype, ..info }) as f64)
            .sum(),
        fraction: None,
    };
    let cache = |kv_type: KvType| {
        let block_tokens = backend.info().kv_block_tokens;
        let blocks = tokens.div_ceil(block_tokens);
        let spec = KvSpec { layers: graph.kv().to_vec(), kv_type, blocks, block_tokens };
        let amount = spec.bytes().unwrap_or(0) as f64;
        Side { way: format!("KV cache in {kv_type}"), amount, fraction: None }
    };
    let claim = |name, work, ours, plain| Claim {
        name,
        must: Must::Smaller(0.5),
        outcome: Ok(Outcome { work, ours, plain, limit: None }),
    };
    let count = matrices(graph).count();
    [
        claim(
            "half precision, memory of weights",
            format!("{count} matrices"),
            weights(DType::F16),
            weights(DType::F32),
        ),
        claim(
            "half precision, memory of the cache",
            format!("{tokens} tokens"),
            cache(KvType::F16),
            cache(KvType::F32),
        ),
    ]
}

/// The weights that have rows and columns.
fn matrices(graph: &Graph) -> impl Iterator<Item = WeightInfo> {
    graph.weights().iter().filter(|info| info.rows > 1).cloned()
}

/// The claims for people: a line each, and both sides below it.
pub(super) fn table(claims: &[Claim], device: &str, note: Option<&str>) -> String {
    let width = claims.iter().map(|claim| claim.name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>8}  {:>6}\n", "claim", "ratio", "must");
    let (mut met, mut looked) = (0, 0);
    for claim in claims {
        let (name, must) = (claim.name, claim.must.said());
        match (&claim.outcome, claim.verdict()) {
            (Ok(outcome), Some((ratio, holds))) => {
                met += usize::from(holds);
                looked += 1;
                let said = if holds { "met" } else { "not met" };
                text += &format!(
                    "{name:width$}  {ratio:>8.2}  {must:>6}  {said}  ({})\n",
                    outcome.work
                );
                for side in [&outcome.ours, &outcome.plain] {
                    let part = side.fraction.map(|part| format!(", {}", percent(part)));
                    let of = part.map(|part| match &outcome.limit {
                        Some(limit) => format!("{part} {limit}"),
                        None => part,
                    });
                    let amount = claim.must.amount(side.amount);
                    text += &format!("    {}: {amount}{}\n", side.way, of.unwrap_or_default());
                }
            }
            (Err(why), _) => text += &format!("{name:width$}  {:>8}  {must:>6}  {why}\n", "–"),
            (Ok(_), None) => {}
        }
    }
    text += &format!("{device}: {met} of {looked} claims that were looked at are met\n");
    if let Some(note) = note {
        text += &format!("{note}\n");
    }
    text
}

/// The claims for programs.
pub(super) fn json(claims: &[Claim], device: &str, note: Option<&str>) -> Value {
    let side = |side: &Side, must: Must| {
        let unit = if matches!(must, Must::Faster(_)) { "seconds" } else { "bytes" };
        json!({ "way": side.way, unit: side.amount, "fraction_of_limit": side.fraction })
    };
    let one = |claim: &Claim| {
        let verdict = claim.verdict();
        let outcome = claim.outcome.as_ref().ok();
        json!({
            "claim": claim.name,
            "ratio": verdict.map(|(ratio, _)| ratio),
            "must": claim.must.bound(),
            "smaller_is_better": matches!(claim.must, Must::Smaller(_)),
            "met": verdict.map(|(_, holds)| holds),
            "work": outcome.map(|outcome| &outcome.work),
            "ours": outcome.map(|outcome| side(&outcome.ours, claim.must)),
            "plain": outcome.map(|outcome| side(&outcome.plain, claim.must)),
            "limit": outcome.and_then(|outcome| outcome.limit.as_deref()),
            "problem": claim.outcome.as_ref().err(),
        })
    };
    json!({
        "device": device,
        "note": note,
        "claims": claims.iter().map(one).collect::<Vec<_>>(),
        "realm_version": env!("CARGO_PKG_VERSION"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ours: f64, plain: f64) -> Outcome {
        let side =
            |way: &str, amount| Side { way: way.into(), amount, fraction: Some(amount / 8.0) };
        let limit = Some("of the peak".into());
        Outcome { work: "2x2".into(), ours: side("new", ours), plain: side("old", plain), limit }
    }

    fn claims() -> Vec<Claim> {
        let claim = |name, must, outcome| Claim { name, must, outcome };
        vec![
            claim("fast", Must::Faster(3.0), Ok(outcome(0.002, 0.006))),
            claim("not fast enough", Must::Faster(3.0), Ok(outcome(2.0, 5.0))),
            claim("small", Must::Smaller(0.5), Ok(outcome(1e6, 2e6))),
            claim("large", Must::Smaller(0.5), Ok(outcome(1.01e6, 2e6))),
            claim("unknown", Must::Faster(7.0), Err("needs a GPU".into())),
        ]
    }

    #[test]
    fn ratios_are_held_against_what_must_be() {
        let verdicts: Vec<_> = claims().iter().map(Claim::verdict).collect();
        let expected =
            [Some((3.0, true)), Some((2.5, false)), Some((0.5, true)), Some((0.505, false)), None];
        for (found, expected) in verdicts.iter().zip(expected) {
            match (found, expected) {
                (Some((ratio, holds)), Some((expected, held))) => {
                    assert!((ratio - expected).abs() < 1e-9 && *holds == held, "{ratio}");
                }
                (found, expected) => assert_eq!(found.is_some(), expected.is_some()),
            }
        }
    }

    #[test]
    fn both_sides_and_the_reason_are_printed() {
        let text = table(&claims(), "cuda:0", Some("a note"));
        for line in [
            "fast                 3.00     ≥ 3  met  (2x2)",
            "not fast enough      2.50     ≥ 3  not met  (2x2)",
            "    old: 5.00 s, 62.5 % of the peak",
            "    new: 2.00 ms, 0.0 % of the peak",
            "small                0.50   ≤ 0.5  met  (2x2)",
            "unknown                 –     ≥ 7  needs a GPU",
            "cuda:0: 2 of 4 claims that were looked at are met",
            "a note",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is missing from\n{text}");
        }
    }

    #[test]
    fn programs_get_the_same() {
        let json = json(&claims(), "cuda:0", None);
        let list = json["claims"].as_array().unwrap();
        assert_eq!((list.len(), &json["note"]), (5, &Value::Null));
        assert_eq!(
            (&list[0]["met"], &list[1]["met"], &list[4]["met"]),
            (&true.into(), &false.into(), &Value::Null)
        );
        assert_eq!(list[0]["ours"]["seconds"], 0.002);
        assert_eq!(list[2]["plain"]["bytes"], 2e6);
        assert_eq!((&list[3]["must"], &list[3]["smaller_is_better"]), (&0.5.into(), &true.into()));
        assert_eq!(list[4]["problem"], "needs a GPU");
    }
}
