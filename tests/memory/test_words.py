import pytest

from streammem.memory.retrieval import content_words, names


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("dog", "dogs"),
        ("man", "men"),
        ("ride", "rides riding rode"),
        ("run", "runs running ran"),
        ("swim", "swims swimming swam"),
        ("box", "boxes"),
        ("carry", "carries carried carrying"),
        ("play", "plays played playing"),
        ("dress", "dresses"),
        ("bus", "bus"),
        ("puppy", "puppies"),
        ("sleep", "sleeping"),
    ],
)
def test_a_word_and_its_plural_or_inflection_are_one(words, others):
    (word,) = content_words(words)
    assert all(content_words(other) == {word} for other in others.split())


@pytest.mark.parametrize(
    ("left", "right"), [("car", "cart"), ("cat", "cattle"), ("ring", "r"), ("bed", "b")]
)
def test_different_words_stay_different(left, right):
    assert content_words(left) != content_words(right)


@pytest.mark.parametrize(
    ("text", "asked", "named"),
    [
        ("A white and brown dog is running.", "a dog", True),
        ("A man is riding a motorcycle on a street.", "a man ride a motorcycle", True),
        ("A man is riding a horse.\nA motorcycle.", "a man rides a motorcycle", False),
        ("A camel stands in a pen.", "an elephant", False),
        ("A dog.", "is there", False),
        ("", "a dog", False),
        (None, "a dog", False),
    ],
)
def test_a_text_names_what_one_of_its_lines_holds_every_content_word_of(text, asked, named):
    assert names(text, content_words(asked)) == named
