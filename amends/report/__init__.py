"""What a run did, for people: the report page, its charts and the model card."""
