"""What is said: messages, topics, the wire, blobs."""
