use super::*;

#[test]
fn blocks_come_back_when_the_last_holder_lets_go() {
    let mut blocks = BlockAllocator::new(2);
    let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
    assert_ne!(a, b);
    assert_eq!(blocks.take(), None);
    blocks.share(a);
    blocks.release(a);
    assert_eq!(blocks.free(), 0);
    blocks.release(a);
    assert_eq!(blocks.take(), Some(a));
    blocks.release(b);
    assert_eq!(blocks.free(), 1);
}

#[test]
fn a_prefix_is_found_by_all_its_tokens() {
    let mut blocks = BlockAllocator::new(4);
    let held: Vec<BlockId> = (0..3).map(|_| blocks.take().unwrap()).collect();
    let first = blocks.register(held[0], PrefixId::EMPTY, &[1, 2]);
    let second = blocks.register(held[1], first, &[3, 4]);
    assert_eq!(blocks.find(PrefixId::EMPTY, &[1, 2]), Some((held[0], first)));
    assert_eq!(blocks.find(first, &[3, 4]), Some((held[1], second)));
    for (before, tokens) in
        [(PrefixId::EMPTY, [3, 4]), (first, [1, 2]), (PrefixId::EMPTY, [1, 3]), (second, [3, 4])]
    {
        assert_eq!(blocks.find(before, &tokens), None);
    }
    // The same beginning, computed twice: the first block stands for it.
    assert_eq!(blocks.register(held[2], PrefixId::EMPTY, &[1, 2]), first);
    assert_eq!(blocks.find(PrefixId::EMPTY, &[1, 2]), Some((held[0], first)));
    blocks.release(held[2]);
    assert_eq!((blocks.free(), blocks.cached()), (2, 0));
}

#[test]
fn idle_blocks_are_kept_until_they_are_needed_the_oldest_goes_first() {
    let mut blocks = BlockAllocator::new(3);
    let held: Vec<BlockId> = (0..3).map(|_| blocks.take().unwrap()).collect();
    for (&block, token) in held.iter().zip(0..) {
        blocks.register(block, PrefixId::EMPTY, &[token]);
    }
    for at in [1, 0, 2] {
        blocks.release(held[at]);
    }
    assert_eq!((blocks.free(), blocks.cached()), (3, 3));
    // Found again and let go once more: it is the youngest now.
    let (found, _) = blocks.find(PrefixId::EMPTY, &[1]).unwrap();
    assert_eq!(found, held[1]);
    blocks.share(found);
    assert_eq!((blocks.free(), blocks.cached()), (2, 2));
    blocks.release(found);
    for at in [0, 2, 1] {
        assert!(blocks.find(PrefixId::EMPTY, &[at]).is_some());
        assert_eq!(blocks.take(), Some(held[at as usize]));
        assert_eq!(blocks.find(PrefixId::EMPTY, &[at]), None);
    }
    assert_eq!(blocks.take(), None);
}

#[test]
fn what_followed_a_forgotten_beginning_is_not_found_behind_another() {
    let mut blocks = BlockAllocator::new(2);
    let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
    let first = blocks.register(a, PrefixId::EMPTY, &[1]);
    blocks.register(b, first, &[2]);
    // The beginning goes although what follows it is held: another block stood in for it.
    blocks.release(a);
    let again = blocks.take().unwrap();
    assert_eq!(again, a);
    let other = blocks.register(again, PrefixId::EMPTY, &[9]);
    assert_eq!(blocks.find(other, &[2]), None);
    assert_eq!(blocks.find(PrefixId::EMPTY, &[1]), None);
}
