"""What a person runs and looks at: journal, brokers, watch, report, demo."""
