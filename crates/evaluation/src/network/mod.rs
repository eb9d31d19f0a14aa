//! Networks that look at pictures, in f32: those whose distances are published. Weights are the user's.
//!
//! * [`Inception`] of 2015, for Fréchet and kernel distances and the Inception score
//! * [`Lpips`] for distances of two pictures; [`Clip`] for how well pictures fit texts
//! * [`Weights`] where weights come from; [`resize`] pictures in the sizes that networks ask for
//!
//! A picture goes through a network in one thread; threads have pictures of their own.

mod clip;
mod conv;
mod inception;
mod layers;
mod lpips;
pub mod resize;
mod transformer;
mod weights;

pub use clip::{Clip, ClipConfig, clip_score};
pub use inception::{Inception, Resize};
pub use lpips::{Lpips, Seen};
pub use weights::Weights;

/// Values `(height, width, channels)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Height and width.
    pub size: [usize; 2],
    /// Values of a place.
    pub channels: usize,
    /// All values.
    pub values: Vec<f32>,
}

impl Map {
    /// The values of all places, one place after the other.
    pub fn places(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.channels)
    }

    /// The mean over places `(channels)`.
    pub fn mean(&self) -> Vec<f32> {
        let mut sums = vec![0.0f64; self.channels];
        for place in self.places() {
            sums.iter_mut().zip(place).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        let count = (self.size[0] * self.size[1]) as f64;
        sums.iter().map(|sum| (sum / count) as f32).collect()
    }
}

/// What pictures of values in 0..1 are as bytes, halves to even, as floats from 0 to 255.
pub(crate) fn bytes(picture: &[f32]) -> Vec<f32> {
    picture.iter().map(|v| (v.clamp(0.0, 1.0) * 255.0).round_ties_even()).collect()
}
