//! Products of a row-major matrix and a few vectors: every row is read once, on the calling thread.
//!
//! For matrices that fit a processor's cache this is faster than waking other threads to share the work, and it isn't
//! slowed down by whatever else these are doing.

const LANES: usize = 32;

/// For each of the rows of `matrix` (`stride` apart, `columns` long) its products with the `vectors`, in order.
pub fn matvec<const N: usize>(
    matrix: &[f32],
    stride: usize,
    columns: usize,
    vectors: [&[f32]; N],
    each: impl FnMut(usize, [f32; N]),
) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features.
        unsafe { matvec_avx2(matrix, stride, columns, vectors, each) };
        return;
    }
    rows(matrix, stride, columns, vectors, each);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn matvec_avx2<const N: usize>(
    matrix: &[f32],
    stride: usize,
    columns: usize,
    vectors: [&[f32]; N],
    each: impl FnMut(usize, [f32; N]),
) {
    rows(matrix, stride, columns, vectors, each);
}

#[inline(always)]
fn rows<const N: usize>(
    matrix: &[f32],
    stride: usize,
    columns: usize,
    vectors: [&[f32]; N],
    mut each: impl FnMut(usize, [f32; N]),
) {
    let vectors = vectors.map(|vector| &vector[..columns]);
    for (index, row) in matrix.chunks(stride).enumerate() {
        let row = &row[..columns];
        let mut sums = [[0.0f32; LANES]; N];
        let whole = columns - columns % LANES;
        for start in (0..whole).step_by(LANES) {
            let block = &row[start..start + LANES];
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                let other = &vector[start..start + LANES];
                for lane in 0..LANES {
                    sum[lane] = block[lane].mul_add(other[lane], sum[lane]);
                }
            }
        }
        let mut totals = [0.0; N];
        for ((total, sum), vector) in totals.iter_mut().zip(sums).zip(vectors) {
            let rest: f32 = row[whole..].iter().zip(&vector[whole..]).map(|(a, b)| a * b).sum();
            *total = sum.iter().sum::<f32>() + rest;
        }
        each(index, totals);
    }
}

#[cfg(test)]
mod tests {
    use super::matvec;

    #[test]
    fn rows_times_vectors() {
        for columns in [1usize, 7, 32, 33, 100, 512] {
            let stride = columns + 3;
            let matrix: Vec<f32> = (0..5 * stride).map(|i| (i as f32 * 0.37).sin()).collect();
            let x: Vec<f32> = (0..columns).map(|i| (i as f32 * 0.11).cos()).collect();
            let y: Vec<f32> = (0..columns).map(|i| 1.0 - i as f32 * 0.01).collect();
            let mut seen = 0;
            matvec(&matrix, stride, columns, [&x, &y], |row, [with_x, with_y]| {
                let exact = |v: &[f32]| -> f64 {
                    (0..columns).map(|i| f64::from(matrix[row * stride + i]) * f64::from(v[i])).sum()
                };
                assert!((f64::from(with_x) - exact(&x)).abs() < 1e-4, "row {row}, {columns} columns");
                assert!((f64::from(with_y) - exact(&y)).abs() < 1e-3, "row {row}, {columns} columns");
                seen += 1;
            });
            assert_eq!(seen, 5);
        }
    }
}
