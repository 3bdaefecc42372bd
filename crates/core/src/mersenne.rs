//! The generator below PyTorch's and NumPy's random numbers.

/// Words of state (Matsumoto, Nishimura: "Mersenne Twister", ACM TOMACS 8, 1998: degree of recurrence n).
const WORDS: usize = 624;
/// Distance of the word that is mixed in (the paper's m).
const MIDDLE: usize = 397;

/// MT19937, seeded by one word as its authors' `init_genrand` (2002) does it, which is what both peers use.
#[derive(Clone)]
pub(crate) struct MersenneTwister {
    state: [u32; WORDS],
    used: usize,
}

impl std::fmt::Debug for MersenneTwister {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MersenneTwister").field("used", &self.used).finish_non_exhaustive()
    }
}

impl MersenneTwister {
    /// The generator of a seed.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, used: WORDS }
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == WORDS {
            self.twist();
        }
        let mut y = self.state[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + MIDDLE) % WORDS] ^ (y >> 1) ^ odd;
        }
        self.used = 0;
    }
}
