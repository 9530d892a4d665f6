pub fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
//---
pub fn is_palindrome(text: &str) -> bool {
    let kept: Vec<char> = text.chars().filter(|c| c.is_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect();
    kept.iter().eq(kept.iter().rev())
}
//---
use std::collections::BTreeMap;
pub fn word_counts(text: &str) -> Vec<(String, usize)> {
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}
//---
pub fn merge(intervals: &[(i32, i32)]) -> Vec<(i32, i32)> {
    let mut sorted = intervals.to_vec();
    sorted.sort();
    let mut merged: Vec<(i32, i32)> = Vec::new();
    for (start, end) in sorted {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}
//---
fn value(letter: char) -> Option<u32> {
    Some(match letter {
        'I' => 1,
        'V' => 5,
        'X' => 10,
        'L' => 50,
        'C' => 100,
        'D' => 500,
        'M' => 1000,
        _ => return None,
    })
}
pub fn roman(text: &str) -> Option<u32> {
    let values: Option<Vec<u32>> = text.chars().map(value).collect();
    let values = values.filter(|v| !v.is_empty())?;
    let mut total = 0;
    for (i, v) in values.iter().enumerate() {
        if values.get(i + 1).is_some_and(|next| next > v) {
            total -= *v as i32;
        } else {
            total += *v as i32;
        }
    }
    Some(total as u32)
}
//---
pub fn prime_factors(n: u64) -> Vec<u64> {
    let mut n = n;
    let mut found = Vec::new();
    let mut p = 2;
    while n > 1 {
        if p * p > n {
            p = n;
        }
        let rest = n % p;
        if rest == 0 {
            found.push(p);
            n /= p;
        } else {
            p += 1;
        }
    }
    found
}
//---
pub fn balanced(text: &str) -> bool {
    let mut open = Vec::new();
    for c in text.chars() {
        match c {
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.pop() != Some(c) => return false,
            _ => {}
        }
    }
    open.is_empty()
}
//---
pub fn rotate(rows: &[Vec<i32>]) -> Vec<Vec<i32>> {
    let width = rows.first().map_or(0, Vec::len);
    (0..width).map(|c| rows.iter().rev().map(|row| row[c]).collect()).collect()
}
