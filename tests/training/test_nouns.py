from streammem.training.nouns import indefinite, plural


def test_several_things_have_their_plural():
    names = "dog knife bench bus sandwich shelf bookshelf box glass person sheep skis tomato"
    assert [plural(name) for name in [*names.split(), "wine glass"]] == [
        "dogs", "knives", "benches", "buses", "sandwiches", "shelves", "bookshelves", "boxes",
        "glasses", "people", "sheep", "skis", "tomatoes", "wine glasses",
    ]  # fmt: skip


def test_one_thing_has_an_article_and_what_is_several_has_none():
    nouns = ["dog", "umbrella", "bus", "glass", "pants", "jeans", "chairs", "bread"]
    assert [indefinite(noun) for noun in nouns] == [
        "a dog", "an umbrella", "a bus", "a glass", "pants", "jeans", "chairs", "bread",
    ]  # fmt: skip
