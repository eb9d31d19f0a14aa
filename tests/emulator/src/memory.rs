//! Device global memory: allocations far apart, with initialised-byte and race shadows.

use std::collections::HashMap;

use crate::fault::{Fault, FaultKind, Outcome, Trap};
use crate::order::Order;
use crate::shadow::{Cells, Conflict, Touch};

/// Every allocation has an address range of this many bits to itself and starts in its middle.
const REGION_BITS: u32 = 36;
/// Words per lazily made page of the race shadow.
const PAGE: usize = 1024;

struct Allocation {
    base: u64,
    data: Vec<u8>,
    /// One bit per byte; empty once everything is initialised.
    written: Vec<u64>,
    missing: usize,
    freed: bool,
    bytes: usize,
    pages: Vec<Option<Box<Cells>>>,
}

impl Allocation {
    #[inline(always)]
    fn is_written(&self, at: usize, len: usize) -> bool {
        self.missing == 0 || (at..at + len).all(|byte| self.written[byte >> 6] >> (byte & 63) & 1 != 0)
    }

    #[inline(always)]
    fn mark(&mut self, at: usize, len: usize) {
        if self.missing == 0 {
            return;
        }
        for byte in at..at + len {
            let bit = 1 << (byte & 63);
            let word = &mut self.written[byte >> 6];
            self.missing -= usize::from(*word & bit == 0);
            *word |= bit;
        }
    }
}

/// Global memory of the emulated device.
#[derive(Default)]
pub struct Memory {
    allocations: Vec<Allocation>,
    in_use: usize,
    peak: usize,
    /// Where the module-scope variables of each module were placed.
    pub(crate) modules: HashMap<u64, u64>,
    pub(crate) clock: u32,
}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    /// A new allocation, 256-byte aligned and with wide gaps around it; its bytes are uninitialised.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let base = ((self.allocations.len() as u64 + 1) << REGION_BITS) + (1 << (REGION_BITS - 1));
        self.allocations.push(Allocation {
            base,
            data: vec![0xcd; bytes],
            written: vec![0; bytes.div_ceil(64)],
            missing: bytes,
            freed: false,
            bytes,
            pages: (0..bytes.div_ceil(PAGE * 4)).map(|_| None).collect(),
        });
        self.in_use += bytes;
        self.peak = self.peak.max(self.in_use);
        base
    }

    /// Frees an allocation by its address. Its address range is never used again.
    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        let live = self.index(address).filter(|&index| self.allocations[index].base == address);
        match live.map(|index| &mut self.allocations[index]) {
            Some(allocation) if !allocation.freed => {
                allocation.freed = true;
                self.in_use -= allocation.bytes;
                allocation.data = Vec::new();
                allocation.written = Vec::new();
                allocation.pages = Vec::new();
                Ok(())
            }
            Some(_) => Err(host(Trap::at(FaultKind::UseAfterFree, 0, address, "freed twice"))),
            None => Err(host(Trap::at(FaultKind::OutOfBounds, 0, address, "freed what is no allocation"))),
        }
    }

    /// Writes from the host.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (index, at) = self.find(address, bytes.len()).map_err(host)?;
        let allocation = &mut self.allocations[index];
        allocation.data[at..at + bytes.len()].copy_from_slice(bytes);
        allocation.mark(at, bytes.len());
        Ok(())
    }

    /// Reads into the host; uninitialised bytes are a fault.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (index, at) = self.find(address, bytes.len()).map_err(host)?;
        let allocation = &self.allocations[index];
        if let Some(byte) = (at..at + bytes.len()).find(|&byte| !allocation.is_written(byte, 1)) {
            let address = allocation.base + byte as u64;
            return Err(host(Trap::at(FaultKind::UninitialisedMemory, 0, address, "the host reads unwritten memory")));
        }
        bytes.copy_from_slice(&allocation.data[at..at + bytes.len()]);
        Ok(())
    }

    /// Sets `bytes` bytes from the host.
    pub fn fill(&mut self, address: u64, bytes: usize, value: u8) -> Result<(), Fault> {
        self.write(address, &vec![value; bytes])
    }

    /// Makes bytes uninitialised again, as a reused workspace is.
    pub fn forget(&mut self, address: u64, bytes: usize) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        let (index, at) = self.find(address, bytes).map_err(host)?;
        let allocation = &mut self.allocations[index];
        if allocation.missing == 0 {
            allocation.written.fill(u64::MAX);
        }
        for byte in at..at + bytes {
            let bit = 1 << (byte & 63);
            let word = &mut allocation.written[byte >> 6];
            allocation.missing += usize::from(*word & bit != 0);
            *word &= !bit;
            allocation.data[byte] = 0xcd;
        }
        Ok(())
    }

    /// Whether every byte of a range is initialised.
    pub fn is_written(&self, address: u64, bytes: usize) -> Result<bool, Fault> {
        let (index, at) = self.find(address, bytes).map_err(host)?;
        Ok(self.allocations[index].is_written(at, bytes))
    }

    /// Bytes of live allocations.
    pub fn bytes_in_use(&self) -> usize {
        self.in_use
    }

    /// The most bytes that were live at once.
    pub fn peak(&self) -> usize {
        self.peak
    }

    fn index(&self, address: u64) -> Option<usize> {
        (address >> REGION_BITS).checked_sub(1).map(|index| index as usize).filter(|&i| i < self.allocations.len())
    }

    /// The allocation that holds a range, and the range's offset in it.
    #[inline(always)]
    fn find(&self, address: u64, len: usize) -> Outcome<(usize, usize)> {
        let Some(index) = self.index(address) else {
            return Err(Trap::at(FaultKind::OutOfBounds, 0, address, "no allocation is anywhere near"));
        };
        let allocation = &self.allocations[index];
        let at = address.wrapping_sub(allocation.base);
        if at <= allocation.bytes as u64 && allocation.bytes as u64 - at >= len as u64 {
            if allocation.freed {
                return Err(Trap::at(FaultKind::UseAfterFree, 0, address, "the allocation was freed"));
            }
            return Ok((index, at as usize));
        }
        let message = format!(
            "{len} bytes at offset {} of the allocation of {} bytes at {:#x}",
            at as i64, allocation.bytes, allocation.base
        );
        Err(Trap::at(FaultKind::OutOfBounds, 0, address, message))
    }

    /// Records an access in the race shadow.
    #[inline(always)]
    fn touch(&mut self, found: (usize, usize), len: usize, order: &Order, thread: u32, touch: Touch) -> Outcome<()> {
        let (index, at) = found;
        let allocation = &mut self.allocations[index];
        each_word(at, len, |word, mask| {
            let words = (allocation.bytes.div_ceil(4) - word / PAGE * PAGE).min(PAGE);
            let page = allocation.pages[word / PAGE].get_or_insert_with(|| Box::new(Cells::new(words)));
            page.touch(word % PAGE, mask, order, thread, touch)
        })
        .map_err(|conflict| race(conflict, allocation.base + at as u64, FaultKind::GlobalRace, touch))
    }

    /// A load by a thread of a running block.
    #[inline]
    pub(crate) fn load(
        &mut self,
        address: u64,
        len: usize,
        order: &Order,
        thread: u32,
        read_only: bool,
    ) -> Outcome<u128> {
        let found = self.find(address, len)?;
        self.check_written(found, len, address)?;
        if read_only {
            self.check_constant(found, len, order, address)?;
        }
        self.touch(found, len, order, thread, Touch::Read)?;
        Ok(little(&self.allocations[found.0].data[found.1..found.1 + len]))
    }

    #[inline(always)]
    fn check_written(&self, (index, at): (usize, usize), len: usize, address: u64) -> Outcome<()> {
        if self.allocations[index].is_written(at, len) {
            return Ok(());
        }
        let message = format!("{len} bytes at offset {at} of an allocation are not all initialised");
        Err(Trap::at(FaultKind::UninitialisedMemory, 0, address, message))
    }

    /// A `.nc` load promises that the bytes stay unchanged during the launch.
    fn check_constant(&self, (index, at): (usize, usize), len: usize, order: &Order, address: u64) -> Outcome<()> {
        let pages = &self.allocations[index].pages;
        each_word(at, len, |word, mask| match &pages[word / PAGE] {
            Some(page) if page.written_since(word % PAGE, mask, order.launch_start) => Err(()),
            _ => Ok(()),
        })
        .map_err(|()| Trap::at(FaultKind::NonCoherent, 0, address, "an .nc load of bytes this launch wrote"))
    }

    /// A store by a thread of a running block.
    #[inline]
    pub(crate) fn store(&mut self, address: u64, len: usize, value: u128, order: &Order, thread: u32) -> Outcome<()> {
        let found = self.find(address, len)?;
        self.touch(found, len, order, thread, Touch::Write)?;
        let allocation = &mut self.allocations[found.0];
        put_little(&mut allocation.data[found.1..found.1 + len], value);
        allocation.mark(found.1, len);
        Ok(())
    }

    /// An atomic read-modify-write; returns the old value.
    pub(crate) fn atomic(
        &mut self,
        address: u64,
        len: usize,
        order: &Order,
        thread: u32,
        update: impl FnOnce(u64) -> u64,
    ) -> Outcome<u64> {
        let found = self.find(address, len)?;
        self.check_written(found, len, address)?;
        self.touch(found, len, order, thread, Touch::Atomic)?;
        let bytes = &mut self.allocations[found.0].data[found.1..found.1 + len];
        let mut value = [0; 8];
        value[..len].copy_from_slice(bytes);
        let old = u64::from_le_bytes(value);
        bytes.copy_from_slice(&update(old).to_le_bytes()[..len]);
        Ok(old)
    }

    /// Forgets all races, so that the clock can start again.
    pub(crate) fn reset_clock(&mut self) {
        self.clock = 0;
        for allocation in &mut self.allocations {
            allocation.pages.fill_with(|| None);
        }
    }
}

/// The value of up to 16 bytes.
#[inline(always)]
pub(crate) fn little(bytes: &[u8]) -> u128 {
    if let Ok(word) = bytes.try_into() {
        return u32::from_le_bytes(word).into();
    }
    if let Ok(all) = bytes.try_into() {
        return u128::from_le_bytes(all);
    }
    let mut value = [0; 16];
    value[..bytes.len()].copy_from_slice(bytes);
    u128::from_le_bytes(value)
}

/// Stores the low bytes of a value.
#[inline(always)]
pub(crate) fn put_little(bytes: &mut [u8], value: u128) {
    match bytes.len() {
        4 => bytes.copy_from_slice(&(value as u32).to_le_bytes()),
        16 => bytes.copy_from_slice(&value.to_le_bytes()),
        len => bytes.copy_from_slice(&value.to_le_bytes()[..len]),
    }
}

/// Calls `act` with each 4-byte word of a range and the mask of its bytes in the range.
#[inline(always)]
pub(crate) fn each_word<E>(at: usize, len: usize, mut act: impl FnMut(usize, u8) -> Result<(), E>) -> Result<(), E> {
    if (at | len) & 3 == 0 {
        return (at / 4..(at + len) / 4).try_for_each(|word| act(word, 15));
    }
    (at / 4..(at + len).div_ceil(4)).try_for_each(|word| {
        let mask = (0..4).filter(|byte| (at..at + len).contains(&(word * 4 + byte))).map(|byte| 1 << byte).sum();
        act(word, mask)
    })
}

/// The trap that reports a conflict.
#[cold]
pub(crate) fn race(conflict: Conflict, address: u64, kind: FaultKind, touch: Touch) -> Box<Trap> {
    let doing = match touch {
        Touch::Read => "reads",
        Touch::Write => "writes",
        Touch::Atomic => "updates",
    };
    let did = |wrote| if wrote { "wrote" } else { "read" };
    match conflict {
        Conflict::Thread { other, wrote } => {
            let message = format!("{doing} what thread {other} {} without a barrier between", did(wrote));
            let mut trap = Trap::at(kind, 0, address, message);
            trap.others.push(other);
            trap
        }
        Conflict::Block { wrote } => {
            let message = format!("{doing} what another block of the launch {}", did(wrote));
            Trap::at(kind, 0, address, message)
        }
        Conflict::InFlight { other } => {
            let message = format!("{doing} the destination of an unfinished cp.async of thread {other}");
            let mut trap = Trap::at(FaultKind::AsyncInFlight, 0, address, message);
            trap.others.push(other);
            trap
        }
    }
}

#[allow(clippy::boxed_local)]
fn host(trap: Box<Trap>) -> Fault {
    Fault {
        kind: trap.kind,
        entry: "".into(),
        instruction: "".into(),
        line: 0,
        block: [0; 3],
        threads: Vec::new(),
        address: trap.address,
        message: trap.message,
    }
}
