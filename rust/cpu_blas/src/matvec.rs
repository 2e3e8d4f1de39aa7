//! Products of a row-major matrix and up to four vectors: every row is read once, on the calling thread.

/// The most vectors that are multiplied at once.
pub const MOST_VECTORS: usize = 4;

/// For each of the rows of `matrix` (`stride` apart, `columns` long) its product with each of the `vectors`, as
/// `each(row, vector, product)`.
///
/// # Panics
/// If there are no vectors or more than `MOST_VECTORS`, or one is shorter than `columns`.
pub fn matvec(
    matrix: &[f32],
    stride: usize,
    columns: usize,
    vectors: &[&[f32]],
    each: &mut impl FnMut(usize, usize, f32),
) {
    match *vectors {
        [a] => several::<1, 4>(matrix, stride, columns, [a], each),
        [a, b] => several::<2, 4>(matrix, stride, columns, [a, b], each),
        [a, b, c] => several::<3, 2>(matrix, stride, columns, [a, b, c], each),
        [a, b, c, d] => several::<4, 2>(matrix, stride, columns, [a, b, c, d], each),
        _ => panic!("{} vectors", vectors.len()),
    }
}

fn several<const N: usize, const R: usize>(
    matrix: &[f32],
    stride: usize,
    columns: usize,
    vectors: [&[f32]; N],
    each: &mut impl FnMut(usize, usize, f32),
) {
    let vectors = vectors.map(|vector| &vector[..columns]);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features.
        return unsafe { avx2::several::<N, R>(matrix, stride, columns, vectors, each) };
    }
    for (index, row) in matrix.chunks(stride).enumerate() {
        for (vector, other) in vectors.iter().enumerate() {
            each(index, vector, row.iter().zip(*other).map(|(a, b)| a * b).sum());
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _MM_HINT_T0, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_prefetch,
        _mm_shuffle_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_setzero_ps,
    };

    const WIDTH: usize = 8;

    /// How far ahead memory is asked for, in numbers: the processor by itself looks ahead too little, and not across
    /// pages.
    const AHEAD: usize = 512;

    /// Products with sums in `R` registers each.
    ///
    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    #[allow(clippy::needless_range_loop)] // iterators over registers come out in memory
    pub unsafe fn several<const N: usize, const R: usize>(
        matrix: &[f32],
        stride: usize,
        columns: usize,
        vectors: [&[f32]; N],
        each: &mut impl FnMut(usize, usize, f32),
    ) {
        let whole = columns - columns % (WIDTH * R);
        for (index, row) in matrix.chunks(stride).enumerate() {
            let row = &row[..columns];
            let mut sums = [[_mm256_setzero_ps(); R]; N];
            let mut at = 0;
            while at < whole {
                for r in 0..R {
                    let from = at + r * WIDTH;
                    if r % 2 == 0 {
                        // A hint, which may point beyond the matrix.
                        _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(from + AHEAD).cast());
                    }
                    // SAFETY: `from + WIDTH` is at most `whole`, which neither the row nor a vector is shorter than.
                    unsafe {
                        let here = _mm256_loadu_ps(row.as_ptr().add(from));
                        for n in 0..N {
                            sums[n][r] = _mm256_fmadd_ps(
                                here,
                                _mm256_loadu_ps(vectors[n].as_ptr().add(from)),
                                sums[n][r],
                            );
                        }
                    }
                }
                at += WIDTH * R;
            }
            for n in 0..N {
                let mut sum = sums[n][0];
                for r in 1..R {
                    sum = _mm256_add_ps(sum, sums[n][r]);
                }
                let rest: f32 =
                    row[whole..].iter().zip(&vectors[n][whole..columns]).map(|(a, b)| a * b).sum();
                each(index, n, across(sum) + rest);
            }
        }
    }

    /// The sum of a register's eight numbers.
    #[target_feature(enable = "avx2")]
    fn across(x: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_VECTORS, matvec};

    #[test]
    fn rows_times_vectors() {
        for columns in [1usize, 7, 32, 33, 100, 512] {
            for rows in [1, 2, 5] {
                let stride = columns + 3;
                // The last row need not be followed by a gap.
                let matrix: Vec<f32> = (0..rows * stride - 3).map(|i| (i as f32 * 0.37).sin()).collect();
                let all: Vec<Vec<f32>> = (0..MOST_VECTORS)
                    .map(|v| (0..columns).map(|i| ((i + 5 * v) as f32 * 0.11).cos()).collect())
                    .collect();
                for count in 1..=MOST_VECTORS {
                    let vectors: Vec<&[f32]> = all[..count].iter().map(Vec::as_slice).collect();
                    let mut seen = vec![0; rows * count];
                    matvec(&matrix, stride, columns, &vectors, &mut |row, vector, product| {
                        let exact: f64 = (0..columns)
                            .map(|i| f64::from(matrix[row * stride + i]) * f64::from(all[vector][i]))
                            .sum();
                        assert!(
                            (f64::from(product) - exact).abs() < 1e-3,
                            "row {row}, vector {vector} of {count}"
                        );
                        seen[row * count + vector] += 1;
                    });
                    assert!(seen.iter().all(|&times| times == 1), "{seen:?}");
                }
            }
        }
    }
}
