use std::sync::Arc;

use realm_core::{
    backend::{Backend, KvType},
    graph::KvLayer,
    reference::ReferenceBackend,
};

use super::*;

use crate::{Request, SamplingParams, kv_cache::PrefixId};

const BLOCK: usize = 4;
/// Of a block: keys and values of one f32 each.
const BLOCK_BYTES: u64 = 2 * 4 * BLOCK as u64;

fn request(prompt: usize, max_tokens: usize) -> Request {
    let sampling = SamplingParams::GREEDY;
    Request { prompt: vec![1; prompt], max_tokens, sampling, stop_tokens: vec![], logprobs: None }
}

/// A scheduler with its cache.
struct Bench {
    scheduler: Scheduler,
    pool: Arc<dyn KvPool>,
    next: u64,
}

impl Bench {
    fn new(tokens: usize, sequences: usize, blocks: usize, rules: Rules) -> Self {
        let layers = vec![KvLayer { heads: 1, head_dim: 1 }];
        let kv = KvSpec { layers, kv_type: KvType::F32, blocks, block_tokens: BLOCK };
        let limits = Limits { tokens, outputs: sequences, sequences };
        let pool = ReferenceBackend::new(BLOCK).kv_pool(&kv).unwrap();
        Self { scheduler: Scheduler::new(limits, &kv, rules), pool, next: 0 }
    }

    /// Without swapping and without sharing.
    fn plain(tokens: usize, sequences: usize, blocks: usize) -> Self {
        Self::new(tokens, sequences, blocks, Rules { swap_bytes: 0, prefix_cache: false })
    }

    fn submit(&mut self, request: Request) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.scheduler.submit(Sequence::new(id, request));
        id
    }

    fn plan(&mut self) -> Vec<(u64, usize, Role)> {
        self.plan_when(true)
    }

    fn plan_when(&mut self, quiet: bool) -> Vec<(u64, usize, Role)> {
        let shares = self.scheduler.plan(quiet, &*self.pool);
        shares.iter().map(|share| (share.sequence.0, share.rows, share.role)).collect()
    }

    /// Plans a step and does as if it were computed; token 7 is chosen.
    fn step(&mut self) -> Vec<(u64, usize, Role)> {
        let shares = self.plan();
        for &(id, rows, _) in &shares {
            let id = SequenceId(id);
            let sequence = self.scheduler.find(id).unwrap();
            sequence.cached += rows;
            assert!(sequence.table.blocks().len() * BLOCK >= sequence.cached);
            let cached = sequence.cached;
            if cached == sequence.tokens.len() {
                sequence.choosing += 1;
                sequence.push(7);
            }
            let over = sequence.generated() >= sequence.max_tokens;
            self.scheduler.computed(id, cached);
            if over {
                assert!(self.scheduler.end(id, None));
            }
        }
        shares
    }

    fn free(&self) -> usize {
        self.scheduler.blocks.free()
    }
}

use Role::{Decode, Prefill};

#[test]
fn decode_comes_first_and_prompts_are_cut() {
    let mut bench = Bench::plain(10, 4, 100);
    bench.submit(request(25, 5));
    bench.submit(request(3, 5));
    assert_eq!(bench.step(), [(0, 10, Prefill)]);
    assert_eq!(bench.step(), [(0, 10, Prefill)]);
    assert_eq!(bench.step(), [(0, 5, Prefill), (1, 3, Prefill)]);
    bench.submit(request(30, 5));
    assert_eq!(bench.step(), [(0, 1, Decode), (1, 1, Decode), (2, 8, Prefill)]);
}

#[test]
fn blocks_are_taken_as_a_sequence_grows() {
    let mut bench = Bench::plain(10, 4, 100);
    bench.submit(request(25, 50));
    for (step, blocks) in [3, 5, 7, 7, 7, 7, 8].into_iter().enumerate() {
        bench.step();
        assert_eq!(100 - bench.free(), blocks, "step {step}");
    }
}

#[test]
fn rows_of_tokens_under_way_are_planned_up_to_the_last() {
    let mut bench = Bench::plain(10, 4, 100);
    let id = bench.submit(request(3, 2));
    assert_eq!(bench.plan(), [(0, 3, Prefill)]);
    let sequence = bench.scheduler.find(id).unwrap();
    (sequence.cached, sequence.choosing) = (3, 1);
    assert_eq!(bench.plan_when(false), [(0, 1, Decode)]);
    // The second token, the last one, is under way.
    let sequence = bench.scheduler.find(id).unwrap();
    (sequence.cached, sequence.choosing) = (4, 2);
    assert_eq!(bench.plan_when(false), []);
}

#[test]
fn a_token_that_the_host_chooses_is_waited_for() {
    let mut bench = Bench::plain(10, 4, 100);
    let sampling = SamplingParams { presence_penalty: 1.0, ..SamplingParams::GREEDY };
    let slow = bench.submit(Request { sampling, ..request(3, 5) });
    let fast = bench.submit(request(3, 5));
    bench.plan();
    for id in [slow, fast] {
        let sequence = bench.scheduler.find(id).unwrap();
        (sequence.cached, sequence.choosing) = (3, 1);
    }
    assert_eq!(bench.plan_when(false), [(1, 1, Decode)]);
    bench.scheduler.find(slow).unwrap().push(9);
    assert_eq!(bench.plan_when(false), [(0, 1, Decode), (1, 1, Decode)]);
}

#[test]
fn the_youngest_makes_room_and_comes_back_before_those_that_wait() {
    for swap_bytes in [0, 1000] {
        let mut bench = Bench::new(20, 4, 6, Rules { swap_bytes, prefix_cache: false });
        bench.submit(request(8, 12));
        bench.submit(request(7, 5));
        assert_eq!(bench.step(), [(0, 8, Prefill), (1, 7, Prefill)]);
        bench.submit(request(1, 1));
        for _ in 0..4 {
            // Beside two that run, two blocks stay free: there are none for a third.
            assert_eq!(bench.step(), [(0, 1, Decode), (1, 1, Decode)]);
        }
        assert_eq!((bench.free(), bench.scheduler.numbers()), (3, [1, 1, 0]));
        // One has ended; the third one comes in, and is done.
        assert_eq!(bench.step(), [(0, 1, Decode), (2, 1, Prefill)]);
        assert_eq!(bench.scheduler.numbers(), [0, 1, 0]);

        bench.submit(request(4, 10));
        bench.submit(request(2, 2));
        while bench.scheduler.numbers()[2] == 0 {
            bench.step();
            assert!(!bench.scheduler.is_idle(), "nobody made room");
        }
        let [waiting, running, preempted] = bench.scheduler.numbers();
        assert_eq!((waiting, running, preempted), (1, 1, 1));
        let Counts { swapped_out, dropped, .. } = bench.scheduler.counts();
        let swaps = swap_bytes > 0;
        assert_eq!((swapped_out, dropped), (u64::from(swaps), u64::from(!swaps)));
        assert_eq!(bench.scheduler.swapped_bytes() > 0, swaps);
        let mut order = Vec::new();
        while !bench.scheduler.is_idle() {
            for (id, _, _) in bench.step() {
                if !order.contains(&id) {
                    order.push(id);
                }
            }
        }
        assert_eq!(order, [0, 3, 4]);
        assert_eq!((bench.free(), bench.scheduler.swapped_bytes()), (6, 0));
    }
}

#[test]
fn what_was_lost_is_computed_again_in_its_role() {
    let mut bench = Bench::plain(20, 4, 5);
    let old = bench.submit(request(4, 13));
    bench.submit(request(6, 8));
    bench.step();
    while bench.scheduler.numbers()[2] == 0 {
        bench.step();
    }
    let (_, lost) = bench.scheduler.preempted.first_key_value().unwrap();
    let generated = lost.generated();
    assert!(lost.cached == 0 && generated > 1 && lost.lost > 6);
    assert!(bench.scheduler.end(old, None));
    // The last token that was generated is not in the cache before.
    assert_eq!(bench.step(), [(1, 6, Prefill)]);
    assert_eq!(bench.step(), [(1, generated, Decode)]);
    assert_eq!(bench.step(), [(1, 1, Decode)]);
}

#[test]
fn host_memory_for_swapping_is_bounded() {
    let rules = Rules { swap_bytes: 3 * BLOCK_BYTES, prefix_cache: false };
    let mut bench = Bench::new(40, 4, 9, rules);
    for _ in 0..4 {
        bench.submit(request(4, 20));
    }
    let mut steps = 0;
    while !bench.scheduler.is_idle() {
        bench.step();
        steps += 1;
        assert!(bench.scheduler.swapped_bytes() <= 3 * BLOCK_BYTES && steps < 500);
    }
    let Counts { swapped_out, dropped, .. } = bench.scheduler.counts();
    assert!(swapped_out > 0 && dropped > 0, "{swapped_out} swapped, {dropped} dropped");
    assert_eq!((bench.free(), bench.scheduler.swapped_bytes()), (9, 0));
}

#[test]
fn all_can_be_computed_again() {
    for swap_bytes in [0, 1000] {
        let mut bench = Bench::new(20, 3, 7, Rules { swap_bytes, prefix_cache: true });
        for prompt in [9, 6, 8, 5] {
            bench.submit(request(prompt, 9));
        }
        while bench.scheduler.numbers()[2] == 0 {
            bench.step();
        }
        assert_eq!(bench.scheduler.swapped_bytes() > 0, swap_bytes > 0);
        let sequences = bench.scheduler.sequences();
        bench.scheduler.restart();
        assert_eq!((bench.free(), bench.scheduler.blocks.cached()), (7, 0));
        assert_eq!(bench.scheduler.blocks.find(PrefixId::EMPTY, &[1; BLOCK]), None);
        let [waiting, running, preempted] = bench.scheduler.numbers();
        assert_eq!((waiting + preempted, running), (sequences, 0));
        assert_eq!(bench.scheduler.swapped_bytes(), 0);
        let mut steps = 0;
        while !bench.scheduler.is_idle() {
            bench.step();
            steps += 1;
            assert!(steps < 500);
        }
        assert_eq!(bench.free(), 7);
    }
}

#[test]
fn blocks_are_not_moved_while_a_step_is_under_way() {
    for swap_bytes in [0, 1000] {
        let mut bench = Bench::new(20, 2, 5, Rules { swap_bytes, prefix_cache: false });
        bench.submit(request(8, 9));
        bench.submit(request(8, 9));
        assert_eq!(bench.step().len(), 2);
        for _ in 0..4 {
            // The older one has the last block; the younger one stands still and keeps its own.
            assert_eq!(bench.plan_when(false), [(0, 1, Decode)]);
            assert_eq!(bench.step(), [(0, 1, Decode)]);
        }
        // The older one needs the next block.
        assert_eq!(bench.plan_when(false), []);
        assert_eq!(bench.scheduler.numbers(), [0, 2, 0]);
        assert_eq!(bench.plan(), [(0, 1, Decode)]);
        assert_eq!(bench.scheduler.numbers(), [0, 1, 1]);
        bench.scheduler.end(SequenceId(0), None);
        // Contents are put back when nothing is under way; to compute anew needs no such moment.
        assert_eq!(bench.plan_when(false).is_empty(), swap_bytes > 0);
        assert_eq!(bench.plan().len(), 1);
    }
}

#[test]
fn the_oldest_goes_on_in_every_step() {
    // Five at once in a cache that holds the longest one and no more.
    for (tokens, swap_bytes, prefix_cache) in
        [(5, 0, false), (64, 200, false), (7, 100, true), (5, 0, true)]
    {
        let mut bench = Bench::new(tokens, 5, 8, Rules { swap_bytes, prefix_cache });
        for at in 0..12 {
            bench.submit(request(1 + 11 * at % 21, 1 + 7 * at % 12));
        }
        let mut steps = 0;
        while !bench.scheduler.is_idle() {
            let all = [&bench.scheduler.running, &bench.scheduler.preempted];
            let all = all.into_iter().chain([&bench.scheduler.waiting]);
            let oldest = all.flat_map(|map| map.keys()).min().unwrap().0;
            let shares = bench.step();
            let has = shares.iter().any(|&(id, rows, _)| id == oldest && rows > 0);
            assert!(has, "{oldest} stands still: {shares:?}");
            assert!(shares.iter().map(|share| share.1).sum::<usize>() <= tokens);
            steps += 1;
            assert!(steps < 1000);
        }
        assert_eq!(bench.free(), 8);
    }
}

#[test]
fn prompts_that_begin_alike_share_blocks_made_by_prefill() {
    let mut bench = Bench::new(100, 2, 20, Rules { swap_bytes: 0, prefix_cache: true });
    let first = bench.submit(request(10, 7));
    assert_eq!(bench.step(), [(0, 10, Prefill)]);
    // Two of its blocks are full of prompt; the third gets full by decoding and is not shared.
    for _ in 0..5 {
        bench.step();
    }
    let text = bench.scheduler.find(first).unwrap().tokens.clone();
    let held = bench.scheduler.find(first).unwrap().table.blocks().to_vec();
    assert_eq!(text.len(), 16);
    let second = bench.submit(Request { prompt: text, ..request(0, 3) });
    assert_eq!(bench.plan(), [(0, 1, Decode), (1, 8, Prefill)]);
    let blocks = bench.scheduler.find(second).unwrap().table.blocks();
    assert_eq!(blocks[..2], held[..2]);
    assert!(blocks[2..].iter().all(|block| !held.contains(block)));
    assert_eq!(bench.scheduler.counts().cached_prompt_tokens, 8);
    assert_eq!(bench.scheduler.counts().prompt_tokens, 26);
    for id in [first, second] {
        assert!(bench.scheduler.end(id, None));
    }
    assert_eq!((bench.free(), bench.scheduler.blocks.cached()), (20, 2));
    // A prompt's last token is computed also where a block holds it.
    bench.submit(request(8, 3));
    assert_eq!(bench.plan(), [(2, 4, Prefill)]);
}

#[test]
fn those_that_wait_or_made_room_can_be_taken_out() {
    let rules = Rules { swap_bytes: 1000, prefix_cache: false };
    let mut bench = Bench::new(20, 2, 5, rules);
    let ids = [8, 8, 3].map(|prompt| bench.submit(request(prompt, 9)));
    for _ in 0..6 {
        bench.step();
    }
    assert_eq!(bench.scheduler.numbers(), [1, 1, 1]);
    assert!(bench.scheduler.swapped_bytes() > 0);
    assert!(!bench.scheduler.unqueue(ids[0]));
    for id in [ids[1], ids[2]] {
        assert!(bench.scheduler.unqueue(id) && !bench.scheduler.unqueue(id));
        assert!(!bench.scheduler.end(id, None));
    }
    assert_eq!((bench.scheduler.numbers(), bench.scheduler.swapped_bytes()), ([0, 1, 0], 0));
    assert!(bench.scheduler.end(ids[0], None));
    assert!(bench.scheduler.is_idle() && bench.free() == 5);
}
