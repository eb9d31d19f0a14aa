//! Images in overlapping tiles, so that memory does not grow with the image.
//!
//! Tiles are spread evenly and overlap by at least a quarter; where they do, results are blended linearly, so that no
//! seam shows although norms see one tile at a time.

use crate::error::{Error, Result};
use std::ops::Range;

/// Sizes of tiles are multiples of this many latents.
pub(super) const STEP: usize = 8;

/// The whole `size` if its `arena` has at most `most` bytes, else the largest square tile whose arena does.
///
/// # Errors
/// [`Error::Request`] if no tile does; what `arena` returns.
pub(super) fn largest(
    size: [usize; 2],
    most: usize,
    arena: &dyn Fn([usize; 2]) -> Result<usize>,
) -> Result<[usize; 2]> {
    if arena(size)? <= most {
        return Ok(size);
    }
    let tile_of = |steps: usize| size.map(|n| n.min(steps * STEP));
    let (mut fits, mut too_large) = (0, size[0].max(size[1]).div_ceil(STEP));
    while fits + 1 < too_large {
        let middle = fits.midpoint(too_large);
        if arena(tile_of(middle))? <= most {
            fits = middle;
        } else {
            too_large = middle;
        }
    }
    if fits == 0 {
        let needed = arena(tile_of(1))?;
        return Err(Error::memory("memory", format!("at least {needed} bytes for the smallest tile"), most));
    }
    Ok(tile_of(fits))
}

/// Where tiles lie along an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// Length of the axis.
    len: usize,
    /// Length of a tile.
    pub tile: usize,
    /// First element of each tile, ascending.
    pub starts: Vec<usize>,
}

impl Axis {
    /// Tiles of `tile` elements, or of `len` if that is less.
    pub fn new(len: usize, tile: usize) -> Self {
        let tile = tile.clamp(1, len.max(1));
        let overlap = if tile < len { (tile / 4).max(usize::from(tile > 1)) } else { 0 };
        let count = if tile < len { (len - overlap).div_ceil(tile - overlap) } else { 1 };
        let starts = (0..count).map(|i| if count == 1 { 0 } else { i * (len - tile) / (count - 1) }).collect();
        Axis { len, tile, starts }
    }

    /// Share of tile `i` at each of its elements, `scale` of them per element of the axis; the shares of all tiles that
    /// cover an element need not sum to 1.
    fn shares(&self, i: usize, scale: usize) -> Vec<f32> {
        let end = |i: usize| self.starts[i] + self.tile;
        let before = if i > 0 { (end(i - 1) - self.starts[i]) * scale } else { 0 };
        let after = if i + 1 < self.starts.len() { (end(i) - self.starts[i + 1]) * scale } else { 0 };
        let n = self.tile * scale;
        let ramp =
            |distance: usize, width: usize| if width == 0 { 1.0 } else { (distance as f32 + 0.5) / width as f32 };
        (0..n).map(|p| ramp(p, before).min(ramp(n - 1 - p, after)).min(1.0)).collect()
    }
}

/// Rows and columns of tiles.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tiles {
    /// Down and across.
    pub axes: [Axis; 2],
}

impl Tiles {
    /// Tiles of at most `tile` rows and columns of an image of `size`.
    pub fn of(size: [usize; 2], tile: [usize; 2]) -> Self {
        Tiles { axes: [0, 1].map(|i| Axis::new(size[i], tile[i])) }
    }

    /// Number of tiles.
    pub fn len(&self) -> usize {
        self.axes[0].starts.len() * self.axes[1].starts.len()
    }

    /// Row and column number of tile `i`.
    fn place(&self, i: usize) -> [usize; 2] {
        let across = self.axes[1].starts.len();
        [i / across, i % across]
    }

    /// Copies tile `i` of `image` `(h, w, c)`, with `scale` pixels per element of the tiled image, into `to`.
    pub fn cut(&self, i: usize, scale: usize, image: &[f32], to: &mut [f32]) {
        let [r, c] = self.place(i);
        let (rows, columns) = (self.range(0, r, scale), self.range(1, c, scale));
        let width = self.axes[1].len * scale;
        let channels = image.len() / (self.axes[0].len * scale * width);
        let to_rows = to.chunks_exact_mut(columns.len() * channels);
        for (row, to) in rows.zip(to_rows) {
            to.copy_from_slice(&image[(row * width + columns.start) * channels..][..columns.len() * channels]);
        }
    }

    fn range(&self, axis: usize, i: usize, scale: usize) -> Range<usize> {
        let start = self.axes[axis].starts[i];
        start * scale..(start + self.axes[axis].tile) * scale
    }

    /// Adds tile `i`, `(h, w, c)` with `scale` pixels per element of the tiled image, to `sum` of whole images.
    pub fn add(&self, i: usize, scale: usize, tile: &[f32], sum: &mut TileSum) {
        let [r, c] = self.place(i);
        let (down, across) = (self.axes[0].shares(r, scale), self.axes[1].shares(c, scale));
        let channels = tile.len() / (down.len() * across.len());
        let (top, left) = (self.axes[0].starts[r] * scale, self.axes[1].starts[c] * scale);
        let width = self.axes[1].len * scale;
        for (y, (row, &down)) in tile.chunks_exact(across.len() * channels).zip(&down).enumerate() {
            let first = (top + y) * width + left;
            for (x, (pixel, &across)) in row.chunks_exact(channels).zip(&across).enumerate() {
                let share = down * across;
                sum.shares[first + x] += share;
                let to = &mut sum.values[(first + x) * channels..][..channels];
                to.iter_mut().zip(pixel).for_each(|(to, v)| *to += share * v);
            }
        }
    }
}

/// Weighted sums of tiles.
pub(super) struct TileSum {
    values: Vec<f32>,
    shares: Vec<f32>,
}

impl TileSum {
    /// Nothing yet, of an image with `pixels` of `channels`.
    pub fn new(pixels: usize, channels: usize) -> Self {
        TileSum { values: vec![0.0; pixels * channels], shares: vec![0.0; pixels] }
    }

    /// Writes the weighted means.
    pub fn finish(&self, to: &mut [f32]) {
        let channels = self.values.len() / self.shares.len();
        let sums = self.values.chunks_exact(channels).zip(&self.shares);
        for (to, (sum, share)) in to.chunks_exact_mut(channels).zip(sums) {
            to.iter_mut().zip(sum).for_each(|(to, sum)| *to = sum / share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_everything_and_overlap_by_a_quarter() {
        for len in 1..70 {
            for tile in 1..70 {
                let axis = Axis::new(len, tile);
                assert_eq!(axis.starts[0], 0);
                assert_eq!(axis.starts.last().unwrap() + axis.tile, len);
                for pair in axis.starts.windows(2) {
                    assert!(pair[0] < pair[1] && pair[0] + axis.tile - pair[1] >= tile / 4, "{len} {tile} {axis:?}");
                }
            }
        }
    }

    #[test]
    fn blended_tiles_of_an_image_are_the_image() {
        let (size, channels, scale) = ([11, 7], 2, 3);
        let image: Vec<f32> = (0..11 * 7 * channels).map(|i| (i as f32).sin()).collect();
        // Every element of a tile becomes scale x scale equal pixels, as a decoder that does nothing would have it.
        let enlarge = |image: &[f32], [h, w]: [usize; 2]| {
            let pixels = (0..h * scale).flat_map(|y| (0..w * scale).map(move |x| (y / scale) * w + x / scale));
            pixels.flat_map(|i| image[i * channels..][..channels].to_vec()).collect::<Vec<f32>>()
        };
        for tile in [2, 3, 4, 5, 8, 20] {
            let tiles = Tiles::of(size, [tile; 2]);
            let mut sum = TileSum::new(11 * 7 * scale * scale, channels);
            let shape = [0, 1].map(|i| tiles.axes[i].tile);
            let mut cut = vec![0.0; shape[0] * shape[1] * channels];
            for i in 0..tiles.len() {
                tiles.cut(i, 1, &image, &mut cut);
                tiles.add(i, scale, &enlarge(&cut, shape), &mut sum);
            }
            let mut got = vec![0.0; 11 * 7 * scale * scale * channels];
            sum.finish(&mut got);
            let want = enlarge(&image, size);
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-6), "tile {tile}");
        }
    }
}
