"""What runs inside the training process. It imports torch, and never grpc."""
