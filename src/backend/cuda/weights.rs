//! Weights on the device: those of one program, copied together.
//!
//! A handle ([`DeviceTensor`]) is a place in the file. Where that is on the device is known to the arena alone, which holds
//! the copy: so no handle outlives what it stands for, and neither does a step that the arena has captured.

use super::driver::Driver;
use crate::codec::layout::BLOB_ALIGN;
use crate::error::Result;
use crate::format::TensorView;
use std::ops::Range;
use std::rc::Rc;

/// A tensor, and its bytes in the file's section of tensors.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTensor<'a> {
    pub(super) view: TensorView<'a>,
    start: usize,
    end: usize,
}

impl<'a> DeviceTensor<'a> {
    /// The tensor `view`, if it lies in `data`.
    pub(super) fn find(view: TensorView<'a>, data: &[u8]) -> Option<Self> {
        let (first, bytes) = match &view {
            TensorView::F32(v) => (v.as_ptr().addr(), size_of_val(*v)),
            TensorView::F16(v) => (v.as_ptr().addr(), size_of_val(*v)),
            TensorView::Codes(m) => (m.planes[0].as_ptr().addr(), m.layout.blobs().total),
        };
        let start = first.checked_sub(data.as_ptr().addr())?;
        let end = start.checked_add(bytes).filter(|&end| end <= data.len())?;
        Some(DeviceTensor { view, start, end })
    }

    /// As it lies in the file.
    pub fn view(&self) -> TensorView<'a> {
        self.view
    }

    /// Its bytes in the file's section of tensors.
    pub(super) fn place(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Weights of a program on a device. Their memory is given back when this and all arenas that were made with it are gone.
pub struct Weights<D: Driver> {
    driver: Rc<D>,
    /// The allocation; none without weights.
    at: Option<u64>,
    runs: Vec<Run>,
}

/// Tensors that follow each other in the file, and do so on the device.
#[derive(Debug)]
pub struct Run {
    /// Their bytes in the file's section of tensors.
    file: Range<usize>,
    /// The device address of the first.
    at: u64,
}

impl Run {
    /// The device address of the bytes `place` of the file; none if they are not all of this run.
    fn address(&self, place: &Range<usize>) -> Option<u64> {
        (self.file.start <= place.start && place.end <= self.file.end)
            .then(|| self.at + (place.start - self.file.start) as u64)
    }
}

/// The device address of the bytes `place` of the file, which lie in one of `runs`.
///
/// # Panics
/// If they do not: a bug of the caller.
pub(super) fn address(runs: &[Run], place: &Range<usize>) -> u64 {
    let at = runs.partition_point(|run| run.file.start <= place.start).checked_sub(1);
    let found = at.and_then(|at| runs[at].address(place));
    found.unwrap_or_else(|| panic!("bytes {place:?} of the file are none of the weights that the arena was made with"))
}

impl<D: Driver> Weights<D> {
    /// Copies `tensors`, which lie in `data`, to the device.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device has not enough memory.
    pub(super) fn upload(driver: Rc<D>, data: &[u8], tensors: &[DeviceTensor<'_>]) -> Result<Self> {
        let mut places: Vec<_> = tensors.iter().map(DeviceTensor::place).collect();
        places.sort_by_key(|place| place.start);
        let mut files: Vec<Range<usize>> = Vec::new();
        for place in places {
            match files.last_mut() {
                // Tensors are aligned, so the next one is at most that far from the end of the one before.
                Some(last) if place.start <= last.end.next_multiple_of(BLOB_ALIGN) => {
                    last.end = last.end.max(place.end)
                }
                _ => files.push(place),
            }
        }
        let bytes = files.iter().map(|file| file.len().next_multiple_of(BLOB_ALIGN)).sum();
        let mut weights = Weights { driver, at: None, runs: Vec::new() };
        if bytes == 0 {
            return Ok(weights);
        }
        let mut at = weights.driver.alloc(bytes)?;
        weights.at = Some(at);
        for file in files {
            weights.driver.upload_weights(at, &data[file.clone()])?;
            let end = at + file.len().next_multiple_of(BLOB_ALIGN) as u64;
            weights.runs.push(Run { file, at });
            at = end;
        }
        Ok(weights)
    }

    /// Whether they are on the device behind `driver`.
    pub(super) fn are_on(&self, driver: &Rc<D>) -> bool {
        Rc::ptr_eq(&self.driver, driver)
    }

    /// Where they lie, in the file's order.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }
}

impl<D: Driver> Drop for Weights<D> {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.driver.free(at);
        }
    }
}
