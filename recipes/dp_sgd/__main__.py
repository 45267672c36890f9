from recipes.dp_sgd import main

main()
