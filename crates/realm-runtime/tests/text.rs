//! Text in, text out, with the demo model: what it says does not matter here, only that the same tokens
//! become the same text, and that a generation ends where it should.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use realm_gguf::GgufFile;
use realm_runtime::{
    Engine, EngineOptions, Finish, Model, Request, RuntimeError, SamplingParams,
    device::DeviceOptions,
    text::{FinishReason, GenerateOptions, Llm, Piece, TextDecoder},
};
use realm_tokenizer::{DecodeOptions, EncodeOptions, chat};
use serde_json::json;

const PROMPT: &str = "Shall I compare thee to a summer's day?";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../realm-cli/demo/realm-demo.gguf")
}

fn model() -> Model {
    Model::open(demo()).unwrap()
}

fn options() -> EngineOptions {
    EngineOptions::default()
}

fn cpu() -> DeviceOptions {
    DeviceOptions { name: "cpu".into(), threads: Some(2), ..DeviceOptions::default() }
}

fn llm() -> Llm {
    Llm::load(&model(), &cpu(), &options()).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    let sampling = SamplingParams::GREEDY;
    GenerateOptions { max_tokens: Some(max_tokens), sampling, ..GenerateOptions::default() }
}

fn pieces(llm: &mut Llm, prompt: &str, options: &GenerateOptions) -> Vec<Piece> {
    llm.generate(prompt, options).unwrap().collect::<Result<_, _>>().unwrap()
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn finish(pieces: &[Piece]) -> Option<FinishReason> {
    let (last, before) = pieces.split_last().unwrap();
    assert!(before.iter().all(|piece| piece.finish.is_none()), "it ended before its end");
    last.finish
}

#[test]
fn a_model_can_go_to_another_thread() {
    fn sent<T: Send>(_: &T) {}
    sent(&llm());
}

#[test]
fn pieces_are_the_text_of_the_tokens() {
    let mut llm = llm();
    let pieces = pieces(&mut llm, PROMPT, &greedy(40));
    assert_eq!(pieces.len(), 40);
    assert_eq!(finish(&pieces), Some(FinishReason::Length));
    let ids: Vec<u32> = pieces.iter().map(|piece| piece.token).collect();
    let how = DecodeOptions { continuation: true, ..DecodeOptions::default() };
    assert_eq!(text(&pieces), llm.tokenizer().unwrap().decode(&ids, how).unwrap());
    assert!(llm.engine().is_idle());
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let mut llm = llm();
    let whole = text(&pieces(&mut llm, PROMPT, &greedy(40)));
    // Text from the middle, so that it begins and ends within tokens.
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(7).collect();
    let stopped = GenerateOptions { stop: vec![middle.clone()], ..greedy(40) };
    let pieces = pieces(&mut llm, PROMPT, &stopped);
    assert_eq!(finish(&pieces), Some(FinishReason::StopString));
    assert_eq!(text(&pieces), whole[..whole.find(&middle).unwrap()]);
    assert!(llm.engine().is_idle());
}

/// Each sequence has its own decoder, and is cancelled at its own stop string.
#[test]
fn stop_strings_end_sequences_side_by_side_where_they_end_them_alone() {
    let mut llm = llm();
    let tokenizer = llm.tokenizer().unwrap().clone();
    let side_by_side = EngineOptions { sequences: 3, step_tokens: 16, ..options() };
    let device = realm_runtime::device::open(&cpu()).unwrap();
    let mut engine = Engine::new(&model(), device.backend().clone(), &side_by_side).unwrap();
    let (mut running, mut expected) = (BTreeMap::new(), Vec::new());
    for (at, prompt) in [PROMPT, "To be", "O Romeo,", PROMPT, "What news?"].iter().enumerate() {
        let sampling =
            SamplingParams { temperature: 0.9, seed: at as u64, ..SamplingParams::GREEDY };
        let free = GenerateOptions { sampling: sampling.clone(), ..greedy(30) };
        let whole = text(&pieces(&mut llm, prompt, &free));
        // Another place in each, and none in the last one.
        let middle: String = whole.chars().skip(3 + 5 * at).take(4).collect();
        let stop = if at == 4 { vec!["\u{1F999}".into()] } else { vec![middle] };
        let alone = pieces(&mut llm, prompt, &GenerateOptions { stop: stop.clone(), ..free });
        expected.push((text(&alone), finish(&alone) == Some(FinishReason::StopString)));
        let how = EncodeOptions { add_special: true, parse_special: true };
        let request = Request {
            prompt: tokenizer.encode(prompt, how).unwrap(),
            max_tokens: 30,
            sampling,
            stop_tokens: tokenizer.end_of_generation().to_vec(),
            logprobs: None,
        };
        let decoder = TextDecoder::new(Some(tokenizer.clone()), &stop);
        running.insert(engine.submit(request).unwrap(), (decoder, String::new()));
    }
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let (decoder, said) = running.get_mut(&event.sequence).unwrap();
            if event.finish != Some(Finish::Stop) {
                said.push_str(&decoder.push(event.token));
            }
            if event.finish.is_some() {
                said.push_str(&decoder.finish());
            } else if decoder.stopped() {
                assert!(engine.cancel(event.sequence));
            }
        }
    }
    assert!(expected.iter().filter(|(_, stopped)| *stopped).count() >= 3, "{expected:?}");
    let found: Vec<_> =
        running.into_values().map(|(decoder, said)| (said, decoder.stopped())).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_stop_string_that_never_comes_changes_nothing() {
    let mut llm = llm();
    let whole = text(&pieces(&mut llm, PROMPT, &greedy(40)));
    let stop = vec!["\u{1F999}".repeat(10_000), "\n\n\n\n\n\n\n\n\n\n\n\n".into()];
    let pieces = pieces(&mut llm, PROMPT, &GenerateOptions { stop, ..greedy(40) });
    assert_eq!((text(&pieces), finish(&pieces)), (whole, Some(FinishReason::Length)));
    let empty = GenerateOptions { stop: vec![String::new()], ..greedy(4) };
    assert!(llm.generate(PROMPT, &empty).is_err());
}

#[test]
fn tokens_that_end_a_text_are_no_part_of_it() {
    let mut llm = llm();
    let whole = pieces(&mut llm, PROMPT, &greedy(12));
    // A word of the text, whose first place ends it.
    let (word, at) = (whole[7].token, whole.iter().position(|p| p.token == whole[7].token));
    let stopped = GenerateOptions { stop_tokens: vec![word], ..greedy(12) };
    let found = pieces(&mut llm, PROMPT, &stopped);
    assert_eq!(finish(&found), Some(FinishReason::End));
    assert_eq!((found.len(), found.last().map(|p| p.token)), (at.unwrap() + 1, Some(word)));
    assert_eq!(text(&found), text(&whole[..at.unwrap()]));
    // The vocabulary's own, unless it is to be passed over.
    let eos = llm.tokenizer().unwrap().eos().unwrap();
    let sampling = SamplingParams { logit_bias: vec![(eos, 1e6)], ..SamplingParams::GREEDY };
    let mut ends = GenerateOptions { sampling, ..greedy(3) };
    let found = pieces(&mut llm, PROMPT, &ends);
    assert_eq!((found.len(), finish(&found)), (1, Some(FinishReason::End)));
    ends.ignore_eos = true;
    let found = pieces(&mut llm, PROMPT, &ends);
    assert_eq!((found.len(), finish(&found)), (3, Some(FinishReason::Length)));
    assert!(text(&found).is_empty());
}

#[test]
fn a_full_context_ends_the_text_and_says_so() {
    let small = EngineOptions { context: Some(64), ..options() };
    let mut llm = Llm::load(&model(), &cpu(), &small).unwrap();
    let endless = GenerateOptions { ignore_eos: true, max_tokens: None, ..greedy(1) };
    let prompt = llm.generate(PROMPT, &endless).unwrap().prompt_tokens();
    let pieces = pieces(&mut llm, PROMPT, &endless);
    assert_eq!(pieces.len(), llm.engine().context() + 1 - prompt);
    assert_eq!(finish(&pieces), Some(FinishReason::Context));
    let error = llm.generate(&PROMPT.repeat(100), &endless).err().unwrap();
    assert!(matches!(error, RuntimeError::PromptTooLong { .. }), "{error}");
}

#[test]
fn a_stream_that_is_dropped_ends_its_sequence() {
    let mut llm = llm();
    let expected = pieces(&mut llm, PROMPT, &greedy(10));
    let mut stream = llm.generate(PROMPT, &greedy(1000)).unwrap();
    assert!(stream.is_cut());
    assert_eq!(stream.next().unwrap().unwrap(), expected[0]);
    drop(stream);
    assert!(llm.engine().is_idle());
    assert_eq!(pieces(&mut llm, PROMPT, &greedy(10)), expected);
}

#[test]
fn a_stream_that_is_stopped_gives_what_it_held_back() {
    let mut llm = llm();
    let whole = pieces(&mut llm, PROMPT, &greedy(6));
    // Begins with all of the text so far, which therefore is held back.
    let stop = vec![text(&whole[..5]) + "\u{1F999}"];
    let mut stream = llm.generate(PROMPT, &GenerateOptions { stop, ..greedy(40) }).unwrap();
    let early: Vec<Piece> = stream.by_ref().take(4).collect::<Result<_, _>>().unwrap();
    assert!(text(&early).is_empty());
    assert_eq!(stream.stop(), text(&whole[..4]));
    assert!(stream.next().is_none() && stream.stop().is_empty());
    drop(stream);
    assert!(llm.engine().is_idle());
}

#[test]
fn a_conversation_is_written_as_its_template_says() {
    let mut llm = llm();
    let messages = [
        chat::message("system", "Be brief."),
        chat::message("user", " Good morrow! "),
        chat::message("assistant", "Good morrow, my lord."),
        chat::message("user", "What news?"),
    ];
    let tokenizer = llm.tokenizer().unwrap().clone();
    let by_hand = "<s><|user|>Be brief.\nGood morrow!<|end|><|assistant|>Good morrow, my lord.\
                   <|end|><|user|>What news?<|end|><|assistant|>";
    let how = EncodeOptions { add_special: false, parse_special: true };
    let ids = tokenizer.encode(by_hand, how).unwrap();
    let special = ids.iter().filter(|&&id| tokenizer.is_special(id)).count();
    assert_eq!(special, 8);
    let expected: Vec<Piece> =
        llm.generate_ids(ids.clone(), &greedy(20)).unwrap().collect::<Result<_, _>>().unwrap();
    // Token by token: text that is much alike may be answered alike.
    let chat = chat::Chat {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        extra: &serde_json::Map::new(),
        now: None,
    };
    assert_eq!(llm.chat_prompt(&chat).unwrap(), ids);
    let answer = llm.chat(&messages, &greedy(20)).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(answer, expected);
    let unknown = [json!({"role": "tool", "content": "x"})];
    let error = llm.chat(&unknown, &greedy(1)).err().unwrap().to_string();
    assert!(error.contains("not tool") && !error.contains('\n'), "{error}");
}

#[test]
fn what_is_missing_is_said() {
    let model = model();
    let device = realm_runtime::device::open(&cpu()).unwrap();
    let engine = || Engine::new(&model, device.backend().clone(), &options()).unwrap();
    let mut bare = Llm::new(&model, engine(), None, None);
    let error = bare.generate("text", &greedy(1)).err().unwrap().to_string();
    assert!(error.contains("no tokenizer in use; give token ids"), "{error}");
    let ids: Vec<Piece> =
        bare.generate_ids(vec![0, 300], &greedy(3)).unwrap().collect::<Result<_, _>>().unwrap();
    assert!(ids.len() <= 3 && text(&ids).is_empty());
    let tokenizer = model.tokenizer().unwrap();
    let mut plain = Llm::new(&model, engine(), Some(tokenizer), None);
    let error = plain.chat(&[chat::message("user", "hi")], &greedy(1)).err().unwrap();
    assert!(matches!(error, RuntimeError::NoChatTemplate { .. }));
    assert!(error.to_string().contains("--chat-template FILE"), "{error}");
}

#[test]
fn log_probabilities_are_of_the_models_own_distribution() {
    let mut llm = llm();
    let all = llm.tokenizer().unwrap().vocab_size();
    let asked = GenerateOptions { logprobs: Some(all), ..greedy(5) };
    for piece in pieces(&mut llm, PROMPT, &asked) {
        let said = piece.logprobs.unwrap();
        let sum: f64 = said.top.iter().map(|(_, log)| f64::from(*log).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-3, "{sum}");
        assert_eq!(said.top[0], (piece.token, said.chosen));
        assert!(said.top.is_sorted_by(|left, right| left.1 >= right.1));
    }
    assert!(pieces(&mut llm, PROMPT, &greedy(5)).iter().all(|piece| piece.logprobs.is_none()));
}

#[test]
fn a_template_that_cannot_be_read_hinders_chat_alone() {
    let mut bytes = fs::read(demo()).unwrap();
    let (statement, nonsense) = (b"{%- set ns", b"{%- sat ns");
    let at = bytes.windows(statement.len()).position(|part| part == statement).unwrap();
    bytes[at..at + nonsense.len()].copy_from_slice(nonsense);
    let model = Model::new(GgufFile::parse(bytes).unwrap()).unwrap();
    let mut llm = Llm::load(&model, &cpu(), &options()).unwrap();
    let said: Vec<&String> =
        llm.notes().iter().filter(|note| note.starts_with("no chat with this model: ")).collect();
    assert_eq!(said.len(), 1, "{:?}", llm.notes());
    assert_eq!(pieces(&mut llm, PROMPT, &greedy(3)).len(), 3);
    let error = llm.chat(&[chat::message("user", "Hello")], &greedy(1)).err().unwrap();
    assert!(matches!(error, RuntimeError::NoChatTemplate { .. }), "{error}");
}
