//! The order that numpy's `RandomState(seed).permutation` puts numbers into: subsets of images are then those that others take.

/// Words of the state of mt19937 (Matsumoto and Nishimura 1998), and the distance of the word that its recurrence mixes in.
const STATE: usize = 624;
const SHIFT: usize = 397;

/// The stream of numpy's `RandomState`.
pub struct Shuffle {
    state: [u32; STATE],
    next: usize,
}

impl Shuffle {
    /// The stream of this seed.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; STATE];
        for i in 1..STATE {
            let last: u32 = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Shuffle { state, next: STATE }
    }

    /// The numbers below `n`, of which `choice(n, k, replace=False)` is the first `k`.
    ///
    /// # Panics
    /// If `n` does not fit 32 bits.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for last in (1..n).rev() {
            let most = u32::try_from(last).expect("fewer than 2^32 numbers");
            // Words of as many bits, until one is not too large.
            let mask = u32::MAX >> most.leading_zeros();
            let place = loop {
                let word = self.word() & mask;
                if word <= most {
                    break word as usize;
                }
            };
            order.swap(last, place);
        }
        order
    }

    fn word(&mut self) -> u32 {
        if self.next == STATE {
            for i in 0..STATE {
                let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
                let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + SHIFT) % STATE] ^ (mixed >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}
