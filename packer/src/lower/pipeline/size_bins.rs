//! The sizes that PixArt was trained at, a list of ratios with a size each (`ASPECT_RATIO_*` of PixArt's `diffusion/data`,
//! and of diffusers' pipelines).

use aquatint::raw::format::meta::SizeBin;

/// Height and width in sixteenths of the model's own side, flattest first.
const SIZES: [[u32; 2]; 33] = [
    [8, 32],
    [8, 29],
    [9, 28],
    [9, 27],
    [9, 26],
    [10, 25],
    [10, 24],
    [11, 23],
    [11, 22],
    [11, 21],
    [12, 21],
    [12, 20],
    [13, 19],
    [13, 18],
    [14, 18],
    [14, 17],
    [15, 17],
    [15, 16],
    [16, 16],
    [16, 15],
    [17, 15],
    [17, 14],
    [18, 14],
    [18, 13],
    [19, 13],
    [20, 12],
    [21, 12],
    [22, 11],
    [23, 11],
    [24, 10],
    [25, 10],
    [27, 9],
    [32, 8],
];
/// Those that the model of 2048 pixels has beside them.
const MORE_OF_2K: [[u32; 2]; 7] = [[8, 31], [8, 30], [26, 9], [28, 9], [29, 8], [30, 8], [31, 8]];
/// Latents on a side of the models that have such lists: 256, 512, 1024 and 2048 pixels.
const SAMPLE_SIZES: [u32; 4] = [32, 64, 128, 256];

/// The sizes of a model of so many latents on a side, flattest first; none for a side that nobody published a model of, or if
/// one is not of whole `multiple`s of pixels, which is all that the model can make.
pub fn size_bins(sample_size: u32, multiple: u32) -> Vec<SizeBin> {
    // Eight pixels a latent, which is what the lists are for.
    let sixteenth = sample_size / 2;
    if !SAMPLE_SIZES.contains(&sample_size) || !sixteenth.is_multiple_of(multiple) {
        return Vec::new();
    }
    let more = if sample_size == 256 { &MORE_OF_2K[..] } else { &[] };
    let bin = |&[height, width]: &[u32; 2]| SizeBin {
        // The lists have two digits of it.
        ratio: (100.0 * f64::from(height) / f64::from(width)).round() / 100.0,
        size: [height, width].map(|sixteenths| sixteenths * sixteenth),
    };
    let mut bins: Vec<SizeBin> = SIZES.iter().chain(more).map(bin).collect();
    bins.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    bins
}
