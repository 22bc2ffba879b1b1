"""Many runs in one folder, which is all there is to them: no process in charge, nothing kept anywhere else."""
