//! Where transients lie: in a few buffers, the slots, at offsets.
//!
//! wgpu tracks the use of memory by buffer, so two tensors that one node binds are never put into one slot: bound read-only and
//! writable, it would be refused, and otherwise be ordered for nothing. All others may share a slot, one after the other in
//! the same bytes, or side by side. Side by side is what matters: a network keeps many small activations of its deep layers
//! for the gradient at a time at which the few large buffers of its first layers would hold a single small one each.

use std::collections::HashSet;

use crate::graph::VIEW_ALIGNMENT;
use crate::plan::Lifetime;

/// Puts every lifetime into a slot, the largest first, so that a slot never grows: greedy by size (Pisarchyk and Lee 2020,
/// arXiv 2001.03288), into the gap that fits tightest. `together` lists, for every step, the lifetimes that it binds. Returns
/// the bytes of each slot.
pub(crate) fn assign(lifetimes: &mut [Lifetime], together: &[Vec<usize>], no_sharing: bool) -> Vec<u64> {
    let mut bound_with: Vec<HashSet<usize>> = vec![HashSet::new(); lifetimes.len()];
    for lives in together {
        for &life in lives {
            if let Some(others) = bound_with.get_mut(life) {
                others.extend(lives.iter().copied().filter(|&other| other != life));
            }
        }
    }
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), lifetimes[i].first, i));
    let mut slots: Vec<Slot> = Vec::new();
    for i in order {
        let bytes = lifetimes[i].bytes;
        let gap_in = |slot: &Slot| {
            let apart = slot.tenants.iter().all(|tenant| !bound_with[i].contains(tenant));
            apart.then(|| slot.tightest_gap(lifetimes, i, bytes)).flatten()
        };
        let gaps = slots.iter().enumerate().filter_map(|(slot, held)| Some((slot, gap_in(held)?)));
        // The tightest of all; among equals the last, which was opened for the smallest.
        let best =
            if no_sharing { None } else { gaps.min_by_key(|&(slot, gap)| (gap.bytes, slots.len() - slot)) };
        let (slot, offset) = best.map_or_else(
            || {
                slots.push(Slot { bytes, tenants: Vec::new() });
                (slots.len() - 1, 0)
            },
            |(slot, gap)| (slot, gap.offset),
        );
        slots[slot].tenants.push(i);
        (lifetimes[i].slot, lifetimes[i].offset) = (slot, offset);
    }
    slots.into_iter().map(|slot| slot.bytes).collect()
}

struct Slot {
    bytes: u64,
    /// Lifetimes that lie in it.
    tenants: Vec<usize>,
}

/// Bytes of a slot that nobody uses for a while.
#[derive(Clone, Copy)]
struct Gap {
    offset: u64,
    bytes: u64,
}

impl Slot {
    /// The smallest gap of at least `bytes` that is free for all of the life of `i`.
    fn tightest_gap(&self, lifetimes: &[Lifetime], i: usize, bytes: u64) -> Option<Gap> {
        let (first, last) = (lifetimes[i].first, lifetimes[i].last);
        let alive = self.tenants.iter().map(|&tenant| &lifetimes[tenant]);
        let alive = alive.filter(|life| life.first <= last && first <= life.last);
        let mut taken: Vec<(u64, u64)> = alive
            .map(|life| (life.offset, life.offset + life.bytes.next_multiple_of(VIEW_ALIGNMENT)))
            .chain([(self.bytes, self.bytes)])
            .collect();
        taken.sort_unstable();
        let mut free_from = 0;
        let mut gaps = Vec::with_capacity(taken.len());
        for (start, end) in taken {
            gaps.push(Gap { offset: free_from, bytes: start.saturating_sub(free_from) });
            free_from = free_from.max(end);
        }
        gaps.into_iter().filter(|gap| gap.bytes >= bytes).min_by_key(|gap| gap.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(bytes: u64, first: usize, last: usize) -> Lifetime {
        Lifetime { tensor: None, bytes, first, last, slot: 0, offset: 0 }
    }

    /// Checks that what lives at the same time lies apart, and what one step binds in other slots.
    fn check(lifetimes: &[Lifetime], together: &[Vec<usize>], slots: &[u64]) {
        for (i, a) in lifetimes.iter().enumerate() {
            assert!(a.offset % VIEW_ALIGNMENT == 0 && a.offset + a.bytes <= slots[a.slot], "{a:?}");
            for b in &lifetimes[..i] {
                let apart_in_time = a.last < b.first || b.last < a.first;
                let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                assert!(a.slot != b.slot || apart_in_time || apart, "{a:?} and {b:?}");
            }
        }
        for lives in together {
            let used: HashSet<usize> = lives.iter().map(|&life| lifetimes[life].slot).collect();
            assert_eq!(used.len(), lives.len());
        }
    }

    #[test]
    fn small_ones_lie_side_by_side_where_a_large_one_lay() {
        let mut lives = vec![life(1024, 0, 1), life(512, 2, 9), life(512, 3, 9), life(512, 8, 9)];
        let apart = vec![vec![0], vec![1], vec![2], vec![3]];
        let slots = assign(&mut lives, &apart, false);
        check(&lives, &apart, &slots);
        assert_eq!(slots, [1024, 512]);
        // What one step binds needs a slot of its own each.
        let together = vec![vec![0], vec![1, 2], vec![2, 3]];
        let slots = assign(&mut lives, &together, false);
        check(&lives, &together, &slots);
        assert_eq!(slots.iter().sum::<u64>(), 1024 + 512);
        let slots = assign(&mut lives, &apart, true);
        assert_eq!(slots.len(), 4);
    }

    #[test]
    fn random_lives_never_overlap() {
        let mut state = 1u64;
        let mut draw = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        for _ in 0..50 {
            let mut lives: Vec<Lifetime> = (0..60)
                .map(|_| {
                    let first = draw(40) as usize;
                    life(1 + draw(5000), first, first + draw(30) as usize)
                })
                .collect();
            // Every step binds what is made in it, and one thing that lives.
            let together: Vec<Vec<usize>> = (0..40)
                .map(|step| {
                    let made = |&i: &usize| lives[i].first == step;
                    let alive = |&i: &usize| lives[i].first < step && step <= lives[i].last;
                    (0..60).filter(made).chain((0..60).find(alive)).collect()
                })
                .collect();
            let slots = assign(&mut lives, &together, false);
            check(&lives, &together, &slots);
            let alone = assign(&mut lives, &together, true);
            assert!(slots.iter().sum::<u64>() <= alone.iter().sum());
        }
    }
}
