//! Who accessed each byte last: race detection for shared and global memory.
//!
//! One cell covers a 4-byte word until an access narrower than the word splits it into its bytes.

use crate::order::{Order, bits};

/// How a thread touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    Atomic,
}

/// Why a touch is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conflict {
    /// Unordered with the last write or read by this thread of the block.
    Thread { other: u32, wrote: bool },
    /// Another block of the launch wrote or read the byte.
    Block { wrote: bool },
    /// The destination of an unfinished `cp.async` of this thread.
    InFlight { other: u32 },
}

const ATOMIC: u16 = 1;
/// Atomics of several unordered threads.
const SEVERAL: u16 = 2;
/// Atomics of several blocks.
const BLOCKS: u16 = 4;
const IN_FLIGHT: u16 = 8;
/// The bytes have cells of their own, at index `r_lanes` of the split list.
const SPLIT: u16 = 16;

/// The last write and the reads since, of one word or byte. Clock 0 stands for never.
#[derive(Clone, Copy, Default)]
struct Cell {
    w_clock: u32,
    /// Latest read.
    r_clock: u32,
    /// Latest read by an earlier block.
    r_before: u32,
    /// Warps and lanes that read since the latest barrier.
    r_warps: u32,
    r_lanes: u32,
    w_thread: u16,
    flags: u16,
}

impl Cell {
    /// Records an access, or tells what it conflicts with. Decides the common cases here: nothing in this launch
    /// touched the cell but before the latest barrier of this block, or this very thread.
    #[inline(always)]
    fn touch(&mut self, order: &Order, thread: u32, touch: Touch) -> Result<(), Conflict> {
        let stamp = order.stamps[thread as usize];
        let settled = |clock| clock < order.launch_start || clock >= order.block_start && clock < order.floor;
        let own = self.w_thread == thread as u16 && self.w_clock >= order.block_start;
        if self.flags == 0 && (own || settled(self.w_clock)) {
            let (warp, lane) = (1 << (thread >> 5), 1 << (thread & 31));
            match touch {
                Touch::Read if self.r_clock == stamp && self.r_warps == warp => {
                    self.r_lanes |= lane;
                    return Ok(());
                }
                Touch::Read if settled(self.r_clock) => {
                    (self.r_clock, self.r_warps, self.r_lanes) = (stamp, warp, lane);
                    return Ok(());
                }
                Touch::Write if settled(self.r_clock) && self.r_before < order.launch_start => {
                    *self = Cell { w_clock: stamp, w_thread: thread as u16, ..Cell::default() };
                    return Ok(());
                }
                _ => {}
            }
        }
        self.touch_slowly(order, thread, touch)
    }

    #[inline(never)]
    fn touch_slowly(&mut self, order: &Order, thread: u32, touch: Touch) -> Result<(), Conflict> {
        if self.flags & IN_FLIGHT != 0 {
            return Err(Conflict::InFlight { other: self.w_thread.into() });
        }
        let mut joined = 0;
        if self.w_clock >= order.launch_start {
            joined = self.check_write(order, thread, touch)?;
        }
        if touch == Touch::Read {
            self.add_reader(order, thread);
            return Ok(());
        }
        self.check_readers(order, thread)?;
        *self = Cell {
            w_clock: order.stamps[thread as usize],
            w_thread: thread as u16,
            flags: if touch == Touch::Atomic { ATOMIC | joined } else { 0 },
            ..Cell::default()
        };
        Ok(())
    }

    /// Checks against the last write of this launch; returns what an atomic joins.
    #[inline]
    fn check_write(&self, order: &Order, thread: u32, touch: Touch) -> Result<u16, Conflict> {
        let both_atomic = touch == Touch::Atomic && self.flags & ATOMIC != 0;
        if self.w_clock < order.block_start || self.flags & BLOCKS != 0 {
            return if both_atomic { Ok(BLOCKS) } else { Err(Conflict::Block { wrote: true }) };
        }
        let other = u32::from(self.w_thread);
        let ordered = if self.flags & SEVERAL != 0 {
            order.all_ordered(self.w_clock, thread)
        } else {
            order.ordered(self.w_clock, other, thread)
        };
        match (ordered, both_atomic) {
            (true, _) => Ok(0),
            (false, true) => Ok(SEVERAL),
            (false, false) => Err(Conflict::Thread { other, wrote: true }),
        }
    }

    #[inline]
    fn check_readers(&self, order: &Order, thread: u32) -> Result<(), Conflict> {
        if self.r_before >= order.launch_start {
            return Err(Conflict::Block { wrote: false });
        }
        if self.r_clock < order.floor {
            if self.r_clock >= order.launch_start && self.r_clock < order.block_start {
                return Err(Conflict::Block { wrote: false });
            }
            return Ok(());
        }
        for warp in bits(self.r_warps) {
            for lane in bits(self.r_lanes) {
                let other = (warp * 32 + lane) as u32;
                if !order.ordered(self.r_clock, other, thread) {
                    return Err(Conflict::Thread { other, wrote: false });
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn add_reader(&mut self, order: &Order, thread: u32) {
        self.add_readers(order, thread, 1 << (thread & 31));
    }

    /// Records reads by several lanes of a warp with the same stamp, of which `thread` is one.
    #[inline]
    fn add_readers(&mut self, order: &Order, thread: u32, lane: u32) {
        let warp = 1 << (thread >> 5);
        let stamp = order.stamps[thread as usize];
        if self.r_clock == stamp && self.r_warps == warp {
            self.r_lanes |= lane;
            return;
        }
        if self.r_clock < order.floor {
            if self.r_clock >= order.launch_start && self.r_clock < order.block_start {
                self.r_before = self.r_clock;
            }
        } else if !self.readers_ordered(order, thread) {
            self.r_warps |= warp;
            self.r_lanes |= lane;
            self.r_clock = self.r_clock.max(stamp);
            return;
        }
        (self.r_clock, self.r_warps, self.r_lanes) = (stamp, warp, lane);
    }

    fn readers_ordered(&self, order: &Order, thread: u32) -> bool {
        self.r_warps.count_ones() == 1
            && bits(self.r_lanes)
                .all(|lane| order.ordered(self.r_clock, self.r_warps.trailing_zeros() * 32 + lane as u32, thread))
    }
}

/// Cells of a range of memory.
#[derive(Clone, Default)]
pub(crate) struct Cells {
    words: Vec<Cell>,
    split: Vec<[Cell; 4]>,
}

impl Cells {
    pub fn new(words: usize) -> Cells {
        Cells { words: vec![Cell::default(); words], split: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.words.fill(Cell::default());
        self.split.clear();
    }

    /// Calls `act` on the cells of the bytes `mask` of a word.
    #[inline(always)]
    fn each<E>(&mut self, word: usize, mask: u8, mut act: impl FnMut(&mut Cell) -> Result<(), E>) -> Result<(), E> {
        let cell = &mut self.words[word];
        if cell.flags & SPLIT == 0 && mask == 15 {
            return act(cell);
        }
        let bytes = self.bytes(word);
        for (index, cell) in bytes.iter_mut().enumerate() {
            if mask >> index & 1 != 0 {
                act(cell)?;
            }
        }
        Ok(())
    }

    /// The cells of the bytes of a word.
    #[inline(never)]
    fn bytes(&mut self, word: usize) -> &mut [Cell; 4] {
        let cell = &mut self.words[word];
        if cell.flags & SPLIT == 0 {
            let bytes = [*cell; 4];
            *cell = Cell { flags: SPLIT, r_lanes: self.split.len() as u32, ..Cell::default() };
            self.split.push(bytes);
        }
        &mut self.split[self.words[word].r_lanes as usize]
    }

    /// Records an access to the bytes `mask` of a word, or tells what it conflicts with.
    #[inline(always)]
    pub fn touch(&mut self, word: usize, mask: u8, order: &Order, thread: u32, touch: Touch) -> Result<(), Conflict> {
        self.each(word, mask, |cell| cell.touch(order, thread, touch))
    }

    /// Records a read of a word by all 32 lanes of a warp; `same` tells that they have the same stamp.
    pub fn read_by_warp(&mut self, word: usize, order: &Order, warp: u32, same: bool) -> Result<(), Conflict> {
        self.each(word, 15, |cell| {
            if cell.flags & IN_FLIGHT != 0 || cell.w_clock >= order.floor || !same {
                return (0..32).try_for_each(|lane| cell.touch(order, warp * 32 + lane, Touch::Read));
            }
            if cell.w_clock >= order.launch_start {
                cell.check_write(order, warp * 32, Touch::Read)?;
            }
            cell.add_readers(order, warp * 32, u32::MAX);
            Ok(())
        })
    }

    /// Marks a word as the destination of an asynchronous copy, after recording the write.
    pub fn begin_copy(&mut self, word: usize, order: &Order, thread: u32) -> Result<(), Conflict> {
        self.each(word, 15, |cell| {
            cell.touch(order, thread, Touch::Write)?;
            cell.flags |= IN_FLIGHT;
            Ok(())
        })
    }

    /// The copy arrived: a write by `thread` at its present time.
    pub fn end_copy(&mut self, word: usize, order: &Order, thread: u32) {
        let _: Result<(), ()> = self.each(word, 15, |cell| {
            *cell = Cell { w_clock: order.stamps[thread as usize], w_thread: thread as u16, ..Cell::default() };
            Ok(())
        });
    }

    /// Whether the current launch wrote any of the bytes.
    pub fn written_since(&self, word: usize, mask: u8, launch_start: u32) -> bool {
        let cell = &self.words[word];
        if cell.flags & SPLIT == 0 {
            return cell.w_clock >= launch_start;
        }
        let bytes = &self.split[cell.r_lanes as usize];
        (0..4).any(|index| mask >> index & 1 != 0 && bytes[index].w_clock >= launch_start)
    }
}
