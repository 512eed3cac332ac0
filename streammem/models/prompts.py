"""The words that go around visual tokens; training and inference share them to the letter."""

CAPTION_INSTRUCTION = "Describe this scene."
