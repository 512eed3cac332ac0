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
        ("A boy with a cap.", "people", True),  # a boy is a child, and a child a person
        ("A puppy runs on grass.", "an animal on the grass", True),
        ("A couch.", "a sofa", True),
        ("A lorry.", "a vehicle", True),  # a truck is a vehicle, and a lorry a truck
        ("An animal.", "a dog", False),
        ("A boy.\nGrass.", "a person on grass", False),
        ("A man is fishing in an orange jacket.", "an animal", False),
        ("", "a dog", False),
        (None, "a dog", False),
    ],
)
def test_a_text_names_what_one_of_its_lines_holds_every_content_word_of(text, asked, named):
    assert names(text, content_words(asked)) == named


def test_who_is_spoken_of_is_not_taken_for_another():
    assert names("a man", content_words("people")) and names("a man", content_words("men"))
    assert not names("a man", content_words("people"), kinds=False)
    assert names("a man", content_words("men"), kinds=False)
