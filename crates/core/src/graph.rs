//! Dependency graphs of a batch.

use crate::task::{Dependency, NewTask};

/// A cycle among the items of a batch, as the indexes on it with the first repeated at the end; `None` when there is
/// none. Linear in items and edges.
pub fn find_cycle(tasks: &[NewTask]) -> Option<Vec<usize>> {
    find_cycle_in(tasks.len(), |item| {
        tasks[item].depends_on.iter().filter_map(|d| match d {
            Dependency::Item(index) => Some(*index),
            Dependency::Task(_) => None,
        })
    })
}

/// The first dependency on an item that a batch of `len` tasks does not have: whose, in which position, and the index
/// that it names.
pub fn find_unknown_item<'a>(len: usize, tasks: impl Iterator<Item = &'a NewTask>) -> Option<(usize, usize, usize)> {
    let unknown = |dependency: &Dependency| match dependency {
        Dependency::Item(index) if *index >= len => Some(*index),
        _ => None,
    };
    tasks.enumerate().find_map(|(item, task)| {
        let mut dependencies = task.depends_on.iter().enumerate();
        dependencies.find_map(|(position, dependency)| Some((item, position, unknown(dependency)?)))
    })
}

/// A cycle in a graph of `len` nodes whose edges `edges` lists.
pub fn find_cycle_in<I: Iterator<Item = usize>>(len: usize, edges: impl Fn(usize) -> I) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let mut marks = vec![Mark::New; len];
    // Depth-first with a stack of its own: a chain of ten thousand tasks must not overflow the thread's.
    let mut path: Vec<(usize, I)> = Vec::new();
    for start in 0..len {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::OnPath;
        path.push((start, edges(start)));
        while let Some((node, rest)) = path.last_mut() {
            match rest.next() {
                None => {
                    marks[*node] = Mark::Done;
                    path.pop();
                }
                Some(next) if marks[next] == Mark::New => {
                    marks[next] = Mark::OnPath;
                    path.push((next, edges(next)));
                }
                Some(next) if marks[next] == Mark::OnPath => {
                    let from = path.iter().position(|(n, _)| *n == next).unwrap_or(0);
                    let mut cycle: Vec<usize> = path[from..].iter().map(|(n, _)| *n).collect();
                    cycle.push(next);
                    return Some(cycle);
                }
                Some(_) => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cycle(edges: &[&[usize]]) -> Option<Vec<usize>> {
        find_cycle_in(edges.len(), |n| edges[n].iter().copied())
    }

    #[test]
    fn a_cycle_is_named_from_its_start_to_its_start() {
        assert_eq!(cycle(&[&[1], &[2], &[0]]), Some(vec![0, 1, 2, 0]));
        assert_eq!(cycle(&[&[], &[2], &[3], &[1]]), Some(vec![1, 2, 3, 1]));
        assert_eq!(cycle(&[&[0]]), Some(vec![0, 0]));
    }

    #[test]
    fn a_diamond_is_no_cycle_and_a_long_chain_does_not_overflow() {
        assert_eq!(cycle(&[&[1, 2], &[3], &[3], &[]]), None);
        assert_eq!(find_cycle_in(200_000, |n| (n > 0).then(|| n - 1).into_iter()), None);
    }

    proptest! {
        #[test]
        fn edges_that_point_backwards_never_form_a_cycle(edges in prop::collection::vec((1usize..50, 0usize..50), 0..200)) {
            let lists: Vec<Vec<usize>> = (0..50).map(|n| edges.iter().filter(|(a, b)| *a == n && b < a).map(|e| e.1).collect()).collect();
            prop_assert_eq!(find_cycle_in(50, |n| lists[n].iter().copied()), None);
        }
    }
}
