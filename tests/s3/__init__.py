"""What tests need of S3: a server, and a network in front of it that fails as networks and servers do."""
