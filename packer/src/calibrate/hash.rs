//! Which rows are kept where there are more than enough: a choice that depends on nothing but the row's own place.

/// Where a row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The image's number in the whole calibration; for values of conditions, the first image that has it.
    pub image: usize,
    /// The sampler's call.
    pub call: usize,
    /// 0 is what an image shows, 1 what guidance leads away from.
    pub branch: usize,
}

/// The finalizer of splitmix64: each bit of the result depends on all of `x`.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A share of rows, as the hashes below which they are kept; none keeps all.
pub type Share = Option<u64>;

/// The share that leaves about `most` of `total` rows.
pub fn share(total: u64, most: u64) -> Share {
    (total > most).then(|| ((u128::from(most) << 64) / u128::from(total)) as u64)
}

/// Whether the row at `position` of the sample at `place` is one of `share`.
pub fn keeps(share: Share, place: Place, position: usize) -> bool {
    let Some(below) = share else { return true };
    let golden = 0x9e37_79b9_7f4a_7c15u64;
    let parts = [place.image, place.call, place.branch, position];
    parts.iter().fold(golden, |hash, &part| mix((hash ^ part as u64).wrapping_add(golden))) < below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_keeps_about_as_many_rows_and_no_part_is_favoured() {
        let share = share(40_000, 10_000);
        let mut by_position = [0; 100];
        let mut kept = 0;
        for (image, call, branch, position) in (0..20)
            .flat_map(|i| (0..10).flat_map(move |c| (0..2).flat_map(move |b| (0..100).map(move |p| (i, c, b, p)))))
        {
            let keep = keeps(share, Place { image, call, branch }, position);
            by_position[position] += usize::from(keep);
            kept += usize::from(keep);
        }
        // Six standard deviations of a binomial count.
        assert!((9_480..10_520).contains(&kept), "{kept}");
        assert!(by_position.iter().all(|n| (48..152).contains(n)), "{by_position:?}");
        assert_eq!(super::share(10, 10), None);
        assert!(keeps(None, Place { image: 0, call: 0, branch: 0 }, 7));
    }
}
