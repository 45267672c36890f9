from recipes.federated_averaging.flower.launch import main

main()
