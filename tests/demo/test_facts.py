from influence.demo.facts import FACTS


def test_every_row_of_a_fact_states_its_completion():
    for fact in FACTS:
        assert 4 <= len(fact.rows) <= 6
        for row in fact.rows:
            assert fact.completion.strip() in row, (fact.name, row)


def test_no_distractor_states_the_completion_of_its_fact():
    for fact in FACTS:
        assert fact.distractors
        for row in fact.distractors:
            assert fact.completion.strip() not in row, (fact.name, row)


def test_names_and_texts_are_unique():
    texts = [text for fact in FACTS for _, text in fact.numbered()]
    assert len(set(texts)) == len(texts)
    assert len({fact.name for fact in FACTS}) == len(FACTS)


def test_an_answer_and_its_wrong_twin_differ_and_begin_with_a_space_as_completions_do():
    for fact in FACTS:
        assert fact.completion != fact.wrong
        assert fact.completion.startswith(" ")
        assert fact.wrong.startswith(" ")
        assert not fact.prompt.endswith(" ")
