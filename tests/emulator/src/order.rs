//! Which accesses of a block are ordered before which: happens-before by barriers alone ("Memory Consistency Model",
//! restricted to `bar`/`barrier` and `bar.warp.sync`).
//!
//! Every synchronisation draws a new tick of one clock. A thread stamps its accesses with the tick of its latest
//! synchronisation, so an access lies before a later synchronisation of that thread exactly when its stamp is smaller.

/// Clock state of the running block.
pub(crate) struct Order {
    pub clock: u32,
    /// First tick of the launch; earlier accesses belong to earlier launches.
    pub launch_start: u32,
    /// First tick of the block; earlier accesses of the launch belong to other blocks.
    pub block_start: u32,
    /// Accesses before this tick are ordered before everything the block does now.
    pub floor: u32,
    /// Current stamp of each thread.
    pub stamps: Vec<u32>,
    /// The same as `floor` among the lanes of one warp.
    warp_floor: Vec<u32>,
    /// `known[w][v]`: what warp `w` has seen of warp `v`.
    known: Vec<u32>,
    /// `lanes[w][l][m]`: what lane `l` has seen of lane `m`, after partial `bar.warp.sync` only.
    lanes: Vec<Option<Box<[[u32; 32]; 32]>>>,
    warps: usize,
}

impl Order {
    pub fn new(clock: u32, warps: usize) -> Order {
        let mut order = Order {
            clock,
            launch_start: clock + 1,
            block_start: 0,
            floor: 0,
            stamps: vec![0; warps * 32],
            warp_floor: vec![0; warps],
            known: vec![0; warps * warps],
            lanes: (0..warps).map(|_| None).collect(),
            warps,
        };
        order.start_block();
        order
    }

    pub fn start_block(&mut self) {
        self.clock += 1;
        self.block_start = self.clock;
        self.floor = self.clock;
        self.stamps.fill(self.clock);
        self.warp_floor.fill(self.clock);
        self.known.fill(self.clock);
        self.lanes.fill_with(|| None);
    }

    /// Whether an access of `thread` stamped `clock`, in this block, is ordered before what `by` does now.
    #[inline]
    pub fn ordered(&self, clock: u32, thread: u32, by: u32) -> bool {
        if clock < self.floor || thread == by {
            return true;
        }
        let (v, w) = ((thread >> 5) as usize, (by >> 5) as usize);
        if v != w {
            return clock < self.known[w * self.warps + v];
        }
        clock < self.warp_floor[w]
            || self.lanes[w].as_ref().is_some_and(|known| clock < known[(by & 31) as usize][(thread & 31) as usize])
    }

    /// Whether everything up to `clock` by any thread of the block is ordered before what `by` does now.
    pub fn all_ordered(&self, clock: u32, by: u32) -> bool {
        clock < self.floor || (0..self.stamps.len() as u32).all(|thread| self.ordered(clock, thread, by))
    }

    /// `bar.warp.sync` of the lanes in `mask`; `live` are the lanes the warp started with.
    pub fn sync_lanes(&mut self, warp: usize, mask: u32, live: u32) {
        self.clock += 1;
        let clock = self.clock;
        for lane in bits(mask) {
            self.stamps[warp * 32 + lane] = clock;
        }
        if mask & live == live {
            self.warp_floor[warp] = clock;
            self.lanes[warp] = None;
            return;
        }
        let floor = self.warp_floor[warp];
        let known = self.lanes[warp].get_or_insert_with(|| Box::new([[floor; 32]; 32]));
        let mut joined = [0; 32];
        for lane in bits(mask) {
            for (seen, row) in joined.iter_mut().zip(&known[lane]) {
                *seen = (*seen).max(*row);
            }
        }
        for lane in bits(mask) {
            joined[lane] = clock;
        }
        for lane in bits(mask) {
            known[lane] = joined;
        }
    }

    /// What `warp` has seen of the others, for an arrival at a barrier.
    pub fn knowledge(&self, warp: usize) -> Vec<u32> {
        self.known[warp * self.warps..][..self.warps].to_vec()
    }

    /// Completion of a barrier at which whole warps met. `arrived` are warps whose accesses before their arrival are
    /// ordered before what the `waiting` warps do next; `seen` is the joined knowledge of all of them.
    pub fn sync_warps(&mut self, arrived: &[(usize, u32)], waiting: &[usize], mut seen: Vec<u32>) {
        self.clock += 1;
        let clock = self.clock;
        if waiting.len() == self.warps {
            self.floor = clock;
        }
        for &(warp, tick) in arrived {
            seen[warp] = seen[warp].max(if waiting.contains(&warp) { clock } else { tick });
        }
        for &warp in waiting {
            self.known[warp * self.warps..][..self.warps].copy_from_slice(&seen);
            self.warp_floor[warp] = clock;
            self.lanes[warp] = None;
            self.stamps[warp * 32..][..32].fill(clock);
        }
    }

    /// A tick after everything `warp` did so far, for `bar.arrive`: its later accesses get a new stamp.
    pub fn tick(&mut self, warp: usize) -> u32 {
        self.clock += 1;
        self.stamps[warp * 32..][..32].fill(self.clock);
        self.clock
    }
}

/// The set bits of a lane mask, ascending.
pub(crate) fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_barrier_orders_everyone() {
        let mut order = Order::new(10, 2);
        let stamp = order.stamps[0];
        assert!(!order.ordered(stamp, 0, 1));
        assert!(!order.ordered(stamp, 0, 40));
        order.sync_warps(&[(0, 0), (1, 0)], &[0, 1], vec![0; 2]);
        assert!(order.ordered(stamp, 0, 1));
        assert!(order.ordered(stamp, 0, 40));
        assert!(!order.ordered(order.stamps[0], 0, 40));
    }

    #[test]
    fn warp_sync_orders_named_lanes_only() {
        let mut order = Order::new(0, 2);
        let stamp = order.stamps[0];
        order.sync_lanes(0, 0b11, u32::MAX);
        assert!(order.ordered(stamp, 0, 1));
        assert!(!order.ordered(stamp, 0, 2));
        order.sync_lanes(0, 0b110, u32::MAX);
        assert!(order.ordered(stamp, 0, 2)); // through lane 1
        assert!(!order.ordered(order.stamps[0], 0, 2));
        assert!(!order.ordered(stamp, 0, 33));
        order.sync_lanes(0, u32::MAX, u32::MAX);
        assert!(order.ordered(order.stamps[5] - 1, 0, 31));
    }
}
