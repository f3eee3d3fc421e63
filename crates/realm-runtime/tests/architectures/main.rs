//! Every architecture with small random weights: what its graph is made of, what its settings change,
//! what devices make of it. Results of other implementations stand in `whole_models`.

#[path = "../common/mod.rs"]
mod common;
mod tiny;

use std::sync::Arc;

use common::cpu;
use realm_conformance::{random::Random, run::distance};
use realm_core::{
    DType,
    backend::{Backend, Precision},
    graph::{Op, ops::Attention},
    reference::ReferenceBackend,
};
use realm_gguf::Strings;
use realm_runtime::{Engine, EngineOptions, Model, models};
use tiny::{EXPERTS, HEAD_DIM, HEADS, HIDDEN, LAYERS, Tiny, VOCABULARY};

fn of(architecture: &'static str) -> Tiny {
    Tiny::new(architecture, 5, DType::F32)
}

fn logits(model: &Model, backend: Arc<dyn Backend>, precision: Precision) -> Vec<f32> {
    let options = EngineOptions { precision, ..EngineOptions::default() };
    let mut engine = Engine::new(model, backend, &options).unwrap();
    let prompt: Vec<u32> = (0..40).map(|at| at * 7 % VOCABULARY as u32).collect();
    let mut logits = Vec::new();
    let sink = |rows: &[f32]| {
        logits.extend_from_slice(rows);
        Ok(())
    };
    engine.logits(&prompt, sink).unwrap();
    logits
}

#[test]
fn devices_agree_on_every_architecture() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    for architecture in models::names().filter(|name| *name != "qwen3moe") {
        for dtype in [DType::F32, DType::Q8_0, DType::Q4_0] {
            let mut tiny = Tiny::new(architecture, seed, dtype);
            let model = tiny.set("attention.sliding_window", 9u32).model().unwrap();
            let expected = logits(&model, Arc::new(ReferenceBackend::new(64)), Precision::F32);
            let off = distance(&logits(&model, cpu(2), Precision::F32), &expected, 0.0);
            assert!(off < 1e-5, "{architecture} in {dtype}: {off}");
        }
    }
}

/// Mixtures of experts, in the two kinds of files that have them. About one seed in a thousand brings
/// two experts so near to each other that rounding errors decide: two seeds in a row do not.
#[test]
fn devices_agree_on_mixtures_of_experts() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let off = |architecture, dtype, seed| {
        let mut tiny = match architecture {
            "llama" => of("llama").with_experts(seed, dtype),
            _ => Tiny::new(architecture, seed, dtype),
        };
        let model = tiny.set("expert_used_count", 3u32).model().unwrap();
        let count = |name| model.graph().nodes().iter().filter(|n| n.op.name() == name).count();
        assert_eq!((count("MoeRoute"), count("MoeGatedLinear"), count("Glu")), (LAYERS, LAYERS, 0));
        let expected = logits(&model, Arc::new(ReferenceBackend::new(64)), Precision::F32);
        distance(&logits(&model, cpu(2), Precision::F32), &expected, 0.0)
    };
    for architecture in ["llama", "qwen3moe"] {
        for dtype in [DType::F32, DType::Q8_0, DType::Q4_0] {
            let [first, second] = [seed, !seed].map(|seed| off(architecture, dtype, seed));
            assert!(first.min(second) < 1e-5, "{architecture} in {dtype}: {first}, {second}");
        }
    }
}

#[test]
fn experts_are_weighted_as_the_file_says() {
    let normalized = |tiny: &Tiny| -> Vec<bool> {
        let model = tiny.model().unwrap();
        let routes = model.graph().nodes().iter().filter_map(|node| match &node.op {
            Op::MoeRoute(op) => Some(op.normalized),
            _ => None,
        });
        routes.collect()
    };
    assert_eq!(normalized(&of("qwen3moe")), [true; LAYERS]);
    assert_eq!(normalized(of("qwen3moe").set("expert_weights_norm", false)), [false; LAYERS]);
    // What only says that nothing is out of the ordinary.
    let mut plain = of("qwen3moe");
    plain.set("expert_weights_scale", 1f32).set("expert_gating_func", 1u32);
    plain.set("expert_shared_count", 0u32).set("expert_group_count", 1u32);
    assert_eq!(normalized(&plain), [true; LAYERS]);
    // One expert is a mixture, none is none.
    let mut one = of("llama").with_experts(5, DType::F32);
    one.set("expert_used_count", 1u32);
    assert_eq!(normalized(&one), [true; LAYERS]);
    assert_eq!(normalized(of("llama").set("expert_count", 0u32)), [false; 0]);
}

#[test]
fn parts_of_tensors_give_what_tensors_give() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q5_1] {
        // Qwen 2 without its biases is what Phi 3 computes.
        let mut apart = Tiny::new("qwen2", seed, dtype);
        for layer in 0..LAYERS {
            for part in ["q", "k", "v"] {
                apart.without(&format!("blk.{layer}.attn_{part}.bias"));
            }
        }
        let plain = apart.model().unwrap();
        let joined = apart.joined().model().unwrap();
        for precision in [Precision::F32, Precision::Int8] {
            let expected = logits(&plain, cpu(2), precision);
            assert_eq!(logits(&joined, cpu(2), precision), expected, "{dtype}, {precision}");
        }
        // Each byte of the joined tensors is bound once.
        let bound = |part: &str| -> usize {
            let weights = joined.graph().weights().iter();
            let weights = weights.filter(|info| info.name.starts_with(part));
            weights.map(|info| joined.data(info).unwrap().len()).sum()
        };
        for part in ["blk.3.attn_qkv", "blk.6.ffn_up"] {
            let tensor = joined.file().require(&format!("{part}.weight")).unwrap();
            assert_eq!(bound(part), tensor.data().unwrap().len(), "{part}");
        }
        let mut fused = joined.graph().clone();
        realm_core::fuse::fuse(&mut fused);
        let gated = fused.nodes().iter().filter(|node| matches!(node.op, Op::GatedLinear(_)));
        assert_eq!(gated.count(), LAYERS);
    }
}

#[test]
fn weights_of_other_models_have_no_bytes() {
    let (phi3, llama) = (of("phi3").model().unwrap(), of("llama").model().unwrap());
    for info in phi3.graph().weights().iter().filter(|info| info.name.contains('[')) {
        assert!(llama.data(info).unwrap_err().to_string().contains(&info.name));
    }
}

/// Attentions of a model's layers, and the base or divisor-laden frequencies that they rotate by.
fn attentions(model: &Model) -> Vec<(Attention, Vec<f64>)> {
    let graph = model.graph();
    let mut ropes = graph.nodes().iter().filter_map(|node| match &node.op {
        Op::Rope(op) => Some(op.rope),
        _ => None,
    });
    let attentions = graph.nodes().iter().filter_map(|node| match &node.op {
        Op::Attention(op) => Some(op.clone()),
        _ => None,
    });
    attentions
        .map(|attention| {
            let [q, k] = [ropes.next().unwrap(), ropes.next().unwrap()];
            assert_eq!(q, k);
            (attention, graph.ropes()[q.index()].inverse.clone())
        })
        .collect()
}

fn windows(tiny: &Tiny) -> Vec<Option<usize>> {
    let attentions = attentions(&tiny.model().unwrap());
    attentions.iter().map(|(attention, _)| attention.spec.mask.window).collect()
}

#[test]
fn windows_stand_where_the_settings_say() {
    let key = "attention.sliding_window";
    let (some, none) = (Some(16), None);
    for architecture in models::names() {
        let layers = windows(of(architecture).set(key, 16u32));
        let expected = match architecture {
            "llama" | "mistral" | "phi3" => [some; LAYERS],
            "gemma2" => [some, none, some, none, some, none, some],
            "gemma3" => [some, some, some, some, some, none, some],
            // Their files have no such setting.
            _ => [none; LAYERS],
        };
        assert_eq!(layers, expected, "{architecture}");
        assert_eq!(windows(of(architecture).set(key, 0u32)), [none; LAYERS], "{architecture}");
    }
    // Gemma 2 has a window even in files that do not say so.
    assert_eq!(windows(&of("gemma2"))[..2], [Some(4096), None]);
    assert_eq!(windows(&of("gemma3")), [none; LAYERS]);
    let pattern = |value: realm_gguf::Value| {
        windows(of("gemma3").set(key, 16u32).set("attention.sliding_window_pattern", value))
    };
    assert_eq!(pattern(3u32.into()), [some, some, none, some, some, none, some]);
    assert_eq!(pattern(1u32.into()), [none; LAYERS]);
    assert_eq!(pattern(0u32.into()), [some; LAYERS]);
    let list = vec![false, true, true, false, false, true, false];
    assert_eq!(pattern(list.into()), [none, some, some, none, none, some, none]);
}

fn standard(base: f64) -> Vec<f64> {
    realm_core::rope::RopeFrequencies::new(base, HEAD_DIM).inverse
}

#[test]
fn gemma_rotates_near_and_far_layers_differently() {
    let mut gemma = of("gemma3");
    gemma.set("attention.sliding_window", 16u32).set("rope.freq_base", 1e6f32);
    gemma.set("rope.scaling.type", "linear").set("rope.scaling.factor", 8f32);
    let far: Vec<f64> = standard(1e6).iter().map(|inverse| inverse / 8.0).collect();
    for (attention, inverse) in attentions(&gemma.model().unwrap()) {
        let windowed = attention.spec.mask.window.is_some();
        assert_eq!(inverse, if windowed { standard(1e4) } else { far.clone() });
    }
    gemma.set("rope.freq_base_swa", 500f32);
    assert_eq!(attentions(&gemma.model().unwrap())[0].1, standard(500.0));
}

#[test]
fn gemma_scales_and_caps() {
    let model = of("gemma2").model().unwrap();
    let ops = || model.graph().nodes().iter().map(|node| &node.op);
    let Some(Op::Scale(scale)) = ops().nth(1) else { panic!("embeddings are not scaled") };
    assert_eq!(scale.factor, (HIDDEN as f32).sqrt());
    let caps = |tiny: &Tiny| -> Vec<f32> {
        let model = tiny.model().unwrap();
        let nodes = model.graph().nodes().iter();
        let caps = nodes.filter_map(|node| match &node.op {
            Op::SoftCap(op) => Some(op.cap),
            _ => None,
        });
        caps.collect()
    };
    assert_eq!(caps(&of("gemma2")), [30.0]);
    assert_eq!(caps(of("gemma2").set("final_logit_softcapping", 0f32)), [0.0; 0]);
    assert_eq!(caps(&of("gemma3")), [0.0; 0]);
    assert_eq!(caps(of("gemma3").set("final_logit_softcapping", 20f32)), [20.0]);
    let spec = |tiny: &Tiny| attentions(&tiny.model().unwrap())[0].0.spec;
    assert_eq!(spec(&of("gemma2")).soft_cap, Some(50.0));
    assert_eq!(spec(of("gemma2").set("attn_logit_softcapping", 0f32)).soft_cap, None);
    assert_eq!(spec(of("gemma2").set("attn_logit_softcapping", 7f32)).soft_cap, Some(7.0));
    assert_eq!(spec(&of("gemma3")).soft_cap, None);

    assert_eq!(spec(&of("gemma2")).scale, 1.0 / (HEAD_DIM as f32).sqrt());
    assert_eq!(spec(of("gemma3").set("attention.scale", 0.25f32)).scale, 0.25);
    // The largest ones divide by their width, unless told otherwise.
    for (architecture, layers) in [("gemma2", 46), ("gemma3", 62)] {
        let mut largest = Tiny::of_layers(architecture, 5, DType::F32, layers);
        assert_eq!(spec(&largest).scale, 1.0 / ((HIDDEN / HEADS) as f32).sqrt());
        assert_eq!(spec(largest.set("attention.scale", 0.5f32)).scale, 0.5);
    }
}

/// Frequencies and magnitude of the one rope table, and the model's context.
fn rope(tiny: &Tiny) -> (Vec<f64>, f64, usize) {
    let model = tiny.model().unwrap();
    let [table] = model.graph().ropes() else { panic!("one table is expected") };
    (table.inverse.clone(), table.magnitude, model.context())
}

#[test]
fn rope_scaling_is_what_the_file_says() {
    assert_eq!(rope(&of("qwen2")), (standard(1e4), 1.0, 200));
    // Older files have no type, and another key.
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        let (inverse, ..) = rope(of("llama").set(key, 4f32));
        assert_eq!(inverse, standard(1e4).iter().map(|x| x / 4.0).collect::<Vec<_>>());
    }
    let mut yarn = of("qwen2");
    yarn.set("rope.scaling.type", "yarn").set("rope.scaling.factor", 4f32);
    yarn.set("rope.scaling.original_context_length", 50u32);
    let (inverse, magnitude, context) = rope(&yarn);
    let divisors: Vec<f64> = standard(1e4).iter().zip(&inverse).map(|(a, b)| a / b).collect();
    // 16 ln(50 / 64π) / ln 1e4 is below 0; 16 ln(50 / 2π) / ln 1e4 = 3.6, so the ramp ends at 4.
    assert_eq!(divisors[0], 1.0);
    assert!(divisors[1] > 1.0 && divisors[4..].iter().all(|d| (d - 4.0).abs() < 1e-12));
    assert!((magnitude - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12 && context == 200);
    yarn.set("rope.scaling.yarn_attn_factor", 0.5f32);
    assert_eq!(rope(&yarn).1, 0.5);
    // Beside what the kind of scaling brings.
    assert_eq!(rope(yarn.set("rope.scaling.attn_factor", 3f32)).1, 1.5);
    assert_eq!(rope(of("llama").set("rope.scaling.attn_factor", 3f32)).1, 3.0);
}

#[test]
fn long_rope_takes_the_short_divisors_and_ends_with_them() {
    let short: Vec<f32> = (0..HEAD_DIM / 2).map(|at| 1.0 + at as f32 / 8.0).collect();
    let long = vec![64.0; HEAD_DIM / 2];
    let mut phi3 = of("phi3");
    phi3.vector("rope_factors_short.weight", &short).vector("rope_factors_long.weight", &long);
    phi3.set("rope.scaling.original_context_length", 50u32);
    phi3.set("rope.scaling.attn_factor", 1.25f32);
    let expected: Vec<f64> =
        standard(1e4).iter().zip(&short).map(|(inverse, by)| inverse / f64::from(*by)).collect();
    assert_eq!(rope(&phi3), (expected.clone(), 1.25, 50));
    assert_eq!(rope(phi3.set("rope.scaling.type", "longrope")), (expected, 1.25, 50));
    // Without divisors there is nothing that ends.
    let mut plain = of("phi3");
    plain.set("rope.scaling.original_context_length", 50u32);
    assert_eq!(rope(&plain), (standard(1e4), 1.0, 200));
}

#[test]
fn what_makes_no_model_is_said() {
    fn refused(tiny: &Tiny) -> String {
        let error = tiny.model().err().expect("an error").to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }
    type Change = fn(&mut Tiny) -> &mut Tiny;
    let cases: [(&'static str, Change, &str); 35] = [
        ("qwen2", |t| t.without("blk.2.attn_k.weight"), "blk.2.attn_k.weight"),
        ("qwen3", |t| t.without("blk.0.attn_q_norm.weight"), "blk.0.attn_q_norm.weight"),
        ("gemma2", |t| t.without("blk.6.post_ffw_norm.weight"), "blk.6.post_ffw_norm.weight"),
        ("gemma3", |t| t.without("output_norm.weight"), "output_norm.weight"),
        ("phi3", |t| t.without("blk.1.attn_qkv.weight"), "blk.1.attn_qkv.weight"),
        ("phi3", |t| t.set("attention.head_count_kv", 4u32), "[384, 64] is expected"),
        ("phi3", |t| t.set("feed_forward_length", u32::MAX), "[8589934590, 64] is expected"),
        ("phi3", |t| t.vector("rope_factors_short.weight", &[1.0]), "16 positive divisors"),
        ("llama", |t| t.vector("rope_freqs.weight", &[-1.0; 16]), "16 positive divisors"),
        ("qwen2", |t| t.set("rope.scaling.type", "ntk"), "rope scaling \"ntk\""),
        ("qwen2", |t| t.set("rope.freq_base", 1f32), "rope.freq_base is 1"),
        ("llama", |t| t.set("rope.scaling.factor", -2f32), "rope.scaling.factor is -2"),
        ("gemma2", |t| t.set("final_logit_softcapping", -1f32), "softcapping is -1"),
        ("gemma3", |t| t.set("attention.sliding_window", "all"), "attention.sliding_window"),
        (
            "gemma3",
            |t| t.set("attention.sliding_window_pattern", vec![0.5f32]),
            "sliding_window_pattern is neither a number",
        ),
        (
            "gemma3",
            |t| t.set("attention.sliding_window_pattern", vec![true; LAYERS - 1]),
            "a list of 7 booleans",
        ),
        ("mistral", |t| t.set("attention.head_count", 3u32), "cannot share 2 KV heads"),
        // What the graph would leave out.
        ("llama", |t| t.set("block_count", 6u32), "blk.6.attn_norm.weight is not part of a llama"),
        ("qwen2", |t| t.vector("output.bias", &[0.5; VOCABULARY]), "output.bias is not part of"),
        ("llama", |t| t.vector("rope_factors_long.weight", &[2.0; 16]), "rope_factors_long.weight"),
        ("qwen2", |t| t.set("expert_count", 8u32), "mixtures of experts of this kind"),
        ("llama", |t| t.set("expert_count", 8u32), "llama.expert_used_count"),
        ("qwen3moe", |t| t.set("expert_count", 0u32), "expert_count is missing or 0"),
        ("qwen3moe", |t| t.set("expert_count", 7u32), "blk.0.ffn_gate_exps.weight is [192, 64]"),
        ("qwen3moe", |t| t.set("expert_count", u32::MAX), "[137438953440, 64] is expected"),
        ("qwen3moe", |t| t.set("expert_used_count", 0u32), "expert_used_count is 0"),
        ("qwen3moe", |t| t.set("expert_used_count", 7u32), "cannot use 7 of 6 experts"),
        ("qwen3moe", |t| t.set("expert_weights_scale", 2.5f32), "expert_weights_scale 2.5 is not"),
        ("qwen3moe", |t| t.set("expert_gating_func", 2u32), "expert_gating_func 2 is not"),
        ("qwen3moe", |t| t.set("expert_shared_count", 1u32), "expert_shared_count 1 is not"),
        ("qwen3moe", |t| t.without("blk.2.ffn_up_exps.weight"), "blk.2.ffn_up_exps.weight"),
        ("qwen3moe", |t| t.without("blk.3.ffn_gate_inp.weight"), "blk.3.ffn_gate_inp.weight"),
        ("qwen3moe", |t| t.vector("blk.0.exp_probs_b.bias", &[0.0; EXPERTS]), "is not part of a"),
        ("qwen3", |t| t.set("attention.scale", f32::NAN), "attention.scale is NaN"),
        (
            "qwen3",
            |t| t.set("attention.key_length", u32::MAX).set("attention.value_length", u32::MAX),
            "heads of 4294967295 elements",
        ),
    ];
    for (architecture, change, expected) in cases {
        let mut tiny = of(architecture);
        let error = refused(change(&mut tiny));
        assert!(error.contains(expected), "{architecture}: {error}, not {expected}");
    }
    let mut yarn = of("qwen3");
    yarn.set("rope.scaling.type", "yarn").set("rope.scaling.yarn_ext_factor", 0.5f32);
    assert!(refused(&yarn).contains("yarn_ext_factor 0.5 is not supported"));
    let mut mixed = of("phi3");
    mixed.vector("rope_factors_short.weight", &[1.0; 16]).set("rope.scaling.type", "yarn");
    assert!(refused(&mixed).contains("does not go with rope_factors_short.weight"));
    let error = refused(&of("gpt9"));
    assert!(models::names().all(|name| error.contains(name)), "{error}");
}

#[test]
fn a_vocabulary_may_be_smaller_than_the_model_but_not_larger() {
    for (tokens, fits) in [(VOCABULARY - 1, true), (VOCABULARY, true), (VOCABULARY + 1, false)] {
        let texts: Vec<String> = ('a'..).take(tokens).map(String::from).collect();
        let mut tiny = of("llama");
        tiny.set_general("tokenizer.ggml.model", "gpt2");
        tiny.set_general("tokenizer.ggml.pre", "gpt-2");
        tiny.set_general("tokenizer.ggml.tokens", texts.iter().collect::<Strings>());
        let tokenizer = tiny.model().unwrap().tokenizer();
        let error = tokenizer.err().map(|error| error.to_string());
        let expected = "the tokenizer has 62 tokens, the model knows 61";
        assert!(error.as_ref().is_none_or(|error| error.contains(expected)), "{error:?}");
        assert_eq!(error.is_none(), fits, "{tokens}");
    }
}

#[test]
fn what_is_beside_the_model_is_passed_over() {
    let mut gemma = of("gemma3");
    gemma.vector("v.blk.0.ln1.weight", &[1.0]).vector("mm.soft_emb_norm.weight", &[1.0]);
    assert!(gemma.set("expert_count", 0u32).model().is_ok());
}

#[test]
fn the_example_in_the_documents_is_the_code() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let code = read("src/models/qwen3.rs");
    let function = &code[code.find("/// The graph of").unwrap()..];
    let document = read("../../CONTRIBUTING.md").replace("\n   ", "\n");
    assert!(document.contains(function), "CONTRIBUTING.md shows another qwen3.rs");
    // The line stands in the list that makes both the modules and the table.
    assert!(document.contains("`architectures!`") && document.contains("\n```rust\nqwen3,\n```\n"));
    let list = read("src/models/mod.rs");
    let list = &list[list.find("\narchitectures! {\n").unwrap()..];
    assert!(list[..list.find("\n}\n").unwrap()].lines().any(|line| line == "    qwen3,"));
}
