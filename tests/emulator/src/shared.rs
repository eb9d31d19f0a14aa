//! Shared memory of the running block.

use crate::fault::{FaultKind, Outcome, Trap};
use crate::memory::{each_word, little, put_little, race};
use crate::order::Order;
use crate::shadow::{Cells, Touch};

pub(crate) struct Shared {
    data: Vec<u8>,
    /// Initialised bytes: four bits per word.
    written: Vec<u8>,
    cells: Cells,
}

impl Shared {
    pub fn new(bytes: usize) -> Shared {
        let words = bytes.div_ceil(4);
        Shared { data: vec![0; bytes], written: vec![0; words], cells: Cells::new(words) }
    }

    pub fn start_block(&mut self) {
        self.written.fill(0);
        self.cells.clear();
    }

    #[inline(always)]
    fn bounds(&self, address: u64, len: usize) -> Outcome<usize> {
        if address.checked_add(len as u64).is_some_and(|end| end <= self.data.len() as u64) {
            return Ok(address as usize);
        }
        let message = format!("{len} bytes of shared memory, of which the block has {}", self.data.len());
        Err(Trap::at(FaultKind::OutOfBounds, 0, address, message))
    }

    #[inline(always)]
    fn check_written(&self, at: usize, len: usize) -> Outcome<()> {
        each_word(at, len, |word, mask| if self.written[word] & mask == mask { Ok(()) } else { Err(()) })
            .map_err(|()| Trap::at(FaultKind::UninitialisedMemory, 0, at as u64, "shared bytes that nothing wrote"))
    }

    #[inline(always)]
    fn touch(&mut self, at: usize, len: usize, order: &Order, thread: u32, touch: Touch) -> Outcome<()> {
        each_word(at, len, |word, mask| self.cells.touch(word, mask, order, thread, touch))
            .map_err(|conflict| race(conflict, at as u64, FaultKind::SharedRace, touch))
    }

    #[inline(always)]
    fn mark(&mut self, at: usize, len: usize) {
        let _: Result<(), ()> = each_word(at, len, |word, mask| {
            self.written[word] |= mask;
            Ok(())
        });
    }

    pub fn load(&mut self, address: u64, len: usize, order: &Order, thread: u32) -> Outcome<u128> {
        let at = self.bounds(address, len)?;
        // In-flight bytes are reported as such even where they were never written.
        self.touch(at, len, order, thread, Touch::Read)?;
        self.check_written(at, len)?;
        Ok(little(&self.data[at..at + len]))
    }

    pub fn store(&mut self, address: u64, len: usize, value: u128, order: &Order, thread: u32) -> Outcome<()> {
        let at = self.bounds(address, len)?;
        self.touch(at, len, order, thread, Touch::Write)?;
        put_little(&mut self.data[at..at + len], value);
        self.mark(at, len);
        Ok(())
    }

    pub fn atomic(
        &mut self,
        address: u64,
        len: usize,
        order: &Order,
        thread: u32,
        update: impl FnOnce(u64) -> u64,
    ) -> Outcome<u64> {
        let at = self.bounds(address, len)?;
        self.touch(at, len, order, thread, Touch::Atomic)?;
        self.check_written(at, len)?;
        let mut value = [0; 8];
        value[..len].copy_from_slice(&self.data[at..at + len]);
        let old = u64::from_le_bytes(value);
        self.data[at..at + len].copy_from_slice(&update(old).to_le_bytes()[..len]);
        Ok(old)
    }

    /// A row of `ldmatrix`: all lanes of the warp count as readers.
    pub fn load_row(&mut self, address: u64, order: &Order, warp: u32) -> Outcome<[u8; 16]> {
        let at = self.bounds(address, 16)?;
        let stamps = &order.stamps[warp as usize * 32..][..32];
        let same = stamps.iter().all(|&stamp| stamp == stamps[0]);
        (at / 4..at / 4 + 4)
            .try_for_each(|word| self.cells.read_by_warp(word, order, warp, same))
            .map_err(|conflict| race(conflict, at as u64, FaultKind::SharedRace, Touch::Read))?;
        self.check_written(at, 16)?;
        let mut row = [0; 16];
        row.copy_from_slice(&self.data[at..at + 16]);
        Ok(row)
    }

    /// Begins an asynchronous copy to whole words.
    pub fn begin_copy(&mut self, address: u64, len: usize, order: &Order, thread: u32) -> Outcome<()> {
        let at = self.bounds(address, len)?;
        each_word(at, len, |word, _| self.cells.begin_copy(word, order, thread))
            .map_err(|conflict| race(conflict, at as u64, FaultKind::SharedRace, Touch::Write))
    }

    /// Lands an asynchronous copy.
    pub fn end_copy(&mut self, at: usize, bytes: &[u8], order: &Order, thread: u32) {
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        self.mark(at, bytes.len());
        for word in at / 4..(at + bytes.len()) / 4 {
            self.cells.end_copy(word, order, thread);
        }
    }
}
