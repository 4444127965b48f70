"""What waits is handed out once, and so that nobody idles while there is something to do."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from strategy_core.isolation.pool import LEAST, MANY, WorkQueue


def test_whoever_has_begun_with_a_key_stays_with_it_and_then_helps_where_most_is_left() -> None:
    """A worker runs one version's code only: to change is to start another."""
    line: WorkQueue[str, int] = WorkQueue(2)
    line.put({"few": [1], "some": [2, 3], "most": [4, 5, 6]})
    line.close()

    assert line.take("few") == ("few", [1])
    assert line.take("few") == ("most", [4, 5, 6])
    assert line.take("most") == ("some", [2, 3])
    assert line.take("some") is None


def test_whoever_waits_for_its_own_key_helps_where_many_wait() -> None:
    """With a slow feed versions would else be asked one after another."""
    line: WorkQueue[str, int] = WorkQueue(2)
    line.put({"mine": [1], "other": list(range(MANY + 1))})

    assert line.take("mine") == ("mine", [1])
    assert line.take("mine") == ("other", [0, 1, 2, 3])


def test_what_is_handed_out_shrinks_towards_the_end() -> None:
    line: WorkQueue[str, int] = WorkQueue(2)
    line.put({"a": list(range(100))})
    line.close()

    sizes = []
    while taken := line.take("a"):
        sizes.append(len(taken[1]))

    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], max(sizes[-2:])) == (25, LEAST)


def test_what_waits_under_other_keys_lets_more_of_one_be_handed_out_at_once() -> None:
    """Each handing-out costs a turn between two processes; only what is handed out last has to be little."""
    line: WorkQueue[str, int] = WorkQueue(2)
    line.put({"a": list(range(10)), "b": list(range(30))})
    line.close()

    assert [len((line.take("b") or ("", []))[1]) for _ in range(3)] == [10, 7, 5]


def test_nobody_takes_more_of_one_key_than_its_share() -> None:
    """Of a version that is slower than all others together, every worker must be left something."""
    line: WorkQueue[str, int] = WorkQueue(4)
    line.put({"slow": list(range(100)), "quick": list(range(10_000))})
    line.close()

    taken = line.take("slow")

    assert taken is not None
    assert len(taken[1]) == 25


def test_a_line_that_is_dropped_hands_out_nothing_more() -> None:
    line: WorkQueue[str, int] = WorkQueue(1)
    line.put({"a": [1, 2]})
    line.close(drop=True)

    assert line.take(None) is None


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 40), max_size=3), max_size=6), st.integers(1, 4))
def test_each_item_is_handed_out_once_whoever_takes_it(batches: list[dict[str, int]], takers: int) -> None:
    line: WorkQueue[str, tuple[str, int, int]] = WorkQueue(takers)

    def take_all() -> Counter[tuple[str, int, int]]:
        taken: Counter[tuple[str, int, int]] = Counter()
        mine = None
        while found := line.take(mine):
            mine, items = found
            taken.update(items)
        return taken

    with ThreadPoolExecutor(takers) as threads:
        running = [threads.submit(take_all) for _ in range(takers)]
        for number, batch in enumerate(batches):
            line.put({key: [(key, number, i) for i in range(count)] for key, count in batch.items()})
        line.close()
        taken = sum((each.result() for each in running), Counter())

    wanted = [(key, number, i) for number, batch in enumerate(batches) for key, n in batch.items() for i in range(n)]
    assert taken == Counter(wanted)
