"""The viewer: pages on which a person moves a run's attributes and watches the classifier."""
