//! How large a page is, and how many tokens each member keeps in one.

use crate::backend::Dtype;

/// Tokens per page of the member with the largest tokens; the others hold more.
const TOKENS_OF_LARGEST: usize = 16;

/// How one member's keys and values fill a page of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// KV heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Stored type.
    pub dtype: Dtype,
}

impl PageShape {
    /// Bytes of one token in one layer.
    pub fn token_bytes(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim * self.dtype.bytes()
    }

    /// Tokens in a page of `page_bytes`.
    pub fn page_tokens(&self, page_bytes: usize) -> usize {
        page_bytes / self.token_bytes()
    }
}

/// Bytes of a page: `TOKENS_OF_LARGEST` tokens of the member whose tokens are largest.
pub fn page_bytes(shapes: &[PageShape]) -> usize {
    TOKENS_OF_LARGEST * shapes.iter().map(PageShape::token_bytes).max().expect("a pool serves at least one member")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Member {
        n_layers: usize,
        shape: PageShape,
    }

    fn member(n_layers: usize, n_kv_heads: usize, head_dim: usize) -> Member {
        Member { n_layers, shape: PageShape { n_kv_heads, head_dim, dtype: Dtype::Bf16 } }
    }

    /// Share of the pool's bytes that no token can use when base, expert and anti-expert hold equally many tokens: a page
    /// has bytes in every layer's plane, which a member of fewer layers or of tokens that do not fill it leaves unused.
    fn waste(base: &Member, pair: &Member) -> f64 {
        let (bytes, planes) = (page_bytes(&[base.shape, pair.shape]), base.n_layers.max(pair.n_layers));
        let [base, pair] = [base, pair].map(|member| {
            let taken = (planes * bytes) as f64 / member.shape.page_tokens(bytes) as f64;
            (taken, (member.n_layers * member.shape.token_bytes()) as f64)
        });
        1.0 - (base.1 + 2.0 * pair.1) / (base.0 + 2.0 * pair.0)
    }

    #[test]
    fn pages_of_known_trios_waste_little() {
        // Qwen2.5 7B + 0.5B, Llama-2 13B + 7B: layers, KV heads, width of a head.
        for (base, pair, page, tokens, wasted) in [
            (member(28, 4, 128), member(24, 2, 64), 32 << 10, [16, 64], 0.048),
            (member(40, 40, 128), member(32, 32, 128), 320 << 10, [16, 20], 0.123),
        ] {
            let bytes = page_bytes(&[base.shape, pair.shape]);
            assert_eq!((bytes, [&base, &pair].map(|member| member.shape.page_tokens(bytes))), (page, tokens));
            let waste = waste(&base, &pair);
            assert!(waste <= 0.15 && (waste - wasted).abs() < 5e-4, "{waste}");
        }
    }
}
